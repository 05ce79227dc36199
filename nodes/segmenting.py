"""Likeness / subject: masks of the subject in its photos."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import host, sockets
from .host import io
from .pictures import images_of

if TYPE_CHECKING:
    from collections.abc import Generator

    from ..subjects.segmenting import Segmentation, SegmentConfig
    from ..subjects.subject import Photo, Subject
    from ..trainers.events import Phase

CATEGORY = "Likeness/subject"
METHODS = [  # of subjects.segmenting.METHODS, which a test holds these against
    "grabcut",
    "toybox",
    "florence2+sam2",
    "owl+sam2",
    "florence2+grabcut",
    "sam2",
    "saliency",
]
POLICIES = ["largest", "best", "union"]


class SegmentSubject(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LikenessSegmentSubject",
            display_name="Segment Subject",
            category=CATEGORY,
            description="Masks of the subject in its training photos, shown as photo, mask and cut-out. "
            "Doubtful masks are flagged.",
            inputs=[
                sockets.Subject.Input(
                    "subject", tooltip="Its training photos get masks; held-out photos are left alone."
                ),
                io.Combo.Input(
                    "method",
                    options=METHODS,
                    default="grabcut",
                    tooltip="grabcut: by colours, no weights. toybox: the built-in world's grounding, then "
                    "GrabCut. florence2 and owl find the class noun, sam2 cuts it out: weights in "
                    "models/florence2, models/owl, models/sam2. sam2 alone: in boxes or at points. "
                    "saliency: IS-Net in models/isnet.",
                ),
                io.String.Input(
                    "boxes",
                    default="",
                    multiline=True,
                    tooltip="Where the subject is, in every photo: x0 y0 x1 y1 in pixels, one box per line. "
                    "Empty: the method finds it.",
                ),
                io.String.Input(
                    "points",
                    default="",
                    multiline=True,
                    tooltip="x y in pixels on the subject, or x y 0 beside it, one per line. May be empty.",
                ),
                io.Combo.Input(
                    "policy",
                    options=POLICIES,
                    default="largest",
                    tooltip="When several boxes are found: the largest, the one with the best score, or all.",
                ),
                io.Boolean.Input(
                    "fill_holes", default=True, tooltip="Fill what the mask encloses: a mug's handle too."
                ),
                io.Boolean.Input(
                    "largest_component",
                    default=True,
                    tooltip="Keep the largest piece only: a photo shows one subject.",
                ),
                io.Int.Input(
                    "grow_px", default=0, min=0, max=256, tooltip="Pixels that the mask grows outward."
                ),
                io.Float.Input(
                    "feather_px",
                    default=0.0,
                    min=0.0,
                    max=256.0,
                    step=0.5,
                    tooltip="Softness of the edge, in pixels.",
                ),
                io.Float.Input(
                    "least_confidence",
                    default=0.6,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Masks that the method is less sure of are flagged.",
                ),
                io.Boolean.Input(
                    "keep_masks", default=True, tooltip="A photo that came with a mask keeps it."
                ),
                io.Combo.Input(
                    "when_unsure",
                    options=["warn", "stop"],
                    default="warn",
                    tooltip="warn: doubtful masks are noted, and empty or full ones left out, so that the "
                    "photo counts as all subject. stop: nothing goes on with a doubt.",
                ),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="Your own masks, one for each training photo or one for all: they override "
                    "everything.",
                ),
            ],
            outputs=[
                sockets.Subject.Output(
                    "masked", display_name="subject", tooltip="The same subject, with masks."
                ),
                io.Image.Output(
                    "preview", display_name="IMAGE", tooltip="Photo, mask and cut-out of every photo."
                ),
                io.String.Output(
                    "report", display_name="report", tooltip="Each photo's confidence and doubts, in words."
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, method: str | None, policy: str | None, when_unsure: str | None) -> bool | str:
        return host.listed(cls, method=method, policy=policy, when_unsure=when_unsure)

    @classmethod
    def execute(cls, subject: Subject, method: str, masks: Any = None, **settings: Any) -> io.NodeOutput:
        masks_BHW = None if masks is None else masks.clone()
        done, found = host.follow(_segment(subject, method, _config(**settings), masks_BHW))
        rows = [_triptych(photo, one) for photo, one in zip(subject.photos, found, strict=True)]
        path = _keep(subject, rows)
        return io.NodeOutput(
            done, images_of(rows), _report(subject, found), ui={"images": host.shown([path])}
        )


NODES: list[type[io.ComfyNode]] = [SegmentSubject]


def _config(
    boxes: str,
    points: str,
    policy: str,
    fill_holes: bool,
    largest_component: bool,
    grow_px: int,
    feather_px: float,
    **plain: Any,
) -> SegmentConfig:
    from ..subjects.segmenting import Refinement, SegmentConfig
    from ..subjects.segmenting.boxes import parse_boxes, parse_points

    return SegmentConfig(
        policy=policy,  # type: ignore[arg-type]  # the combo's options are the Literal's
        boxes=tuple(parse_boxes(boxes)),
        points=tuple(parse_points(points)),
        refinement=Refinement(
            fill_holes=fill_holes,
            largest_component=largest_component,
            grow_px=grow_px,
            feather_px=feather_px,
        ),
        **plain,
    )


def _segment(
    subject: Subject, method: str, config: SegmentConfig, masks_BHW: Any
) -> Generator[Phase, None, tuple[Subject, list[Segmentation]]]:
    """Segmentation as a work that ``host.follow`` shows. Linked masks need no model."""
    from ..subjects.segmenting import Progress, Segmentation, open_segmenter, segment_subject
    from ..trainers.events import Phase

    yield Phase("loading", 0, 1)
    roots = [host.current.models, host.current.models / "likeness"]
    segmenter = None
    if masks_BHW is None:
        segmenter = open_segmenter(method, models=roots, device=host.current.device())
    store = host.current.output / "likeness" / "subjects"
    found = []
    for item in segment_subject(subject, segmenter, store, config, masks_BHW=masks_BHW):
        if isinstance(item, Progress):
            yield Phase("segmenting", item.done, item.total)
        elif isinstance(item, Segmentation):
            found.append(item)
        else:
            return item, found
    raise AssertionError("segment_subject ends with a subject")


def _triptych(photo: Photo, found: Segmentation) -> Any:
    from ..subjects.segmenting.preview import triptych

    return triptych(photo.open(), found, title=photo.path.name[:24])


def _keep(subject: Subject, rows: list[Any]) -> Any:
    """The preview as a file that the page can show."""
    import io as files

    from ..core.paths import write_atomic
    from ..subjects.segmenting.preview import stacked

    buffer = files.BytesIO()
    stacked(rows).save(buffer, "PNG")
    path = host.current.output / "likeness" / "previews" / f"masks-{subject.name}.png"
    write_atomic(path, buffer.getvalue())
    return path


def _report(subject: Subject, found: list[Segmentation]) -> str:
    return "\n".join(
        f"{photo.path.name}: {'; '.join(one.doubts) or f'confidence {one.confidence:.2f}'}"
        for photo, one in zip(subject.photos, found, strict=True)
    )
