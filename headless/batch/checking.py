"""From rows to jobs: every setting is found, converted and checked before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from ...core.errors import LikenessError
from ...core.hashing import hash_json
from .. import runner
from ..graph import Graph, Link, Node, to_api
from .plan import Row, Settings
from .targets import Catalogue, Prompt

NAMES = ("name", "filename_prefix")  # inputs of output nodes that name files: jobs must not share them
MOST_PROBLEMS = 10  # told at once
JOB, SUBJECT = "{job}", "{subject}"
ID_DIGITS = 12  # of a key, as a job's name: no two alike among a million


@dataclass(frozen=True, kw_only=True)
class Job:
    """``key`` is a hash of the graph that runs and of the files it reads: equal jobs have equal keys."""

    key: str
    settings: Settings
    place: str = ""
    subject: str = ""
    method: str = ""


class Workflow:
    """One workflow and what a target knows of its nodes; makes jobs of rows and prompts of jobs."""

    def __init__(self, graph: Graph, catalogue: Catalogue, name: str) -> None:
        self.graph, self.schemas, self.classes, self.name = graph, catalogue.schemas, catalogue.classes, name
        for node in graph.values():
            if node.class_type not in self.schemas:
                raise LikenessError(
                    f"{name}: {node} is not a node that {catalogue.where} knows",
                    fix="Install its pack on a ComfyUI server and name that with --server, or take it out",
                )
        self.order = runner.execution_order(graph, self.schemas)
        self.needed = set(self.order)
        self.untouched: frozenset[str] = frozenset()  # set of nodes known to be right as they are
        self._fingerprint = lru_cache(4096)(self._fingerprint_of)

    def jobs(self, rows: Iterable[Row]) -> Iterator[Job]:
        """A job for every row. Every wrong row is looked at before one LikenessError tells of them all."""
        problems: list[str] = []
        for row in rows:
            try:
                job = self.job(row)
            except LikenessError as error:
                problems.append(_placed(row, error))
                if len(problems) == MOST_PROBLEMS:
                    break
                continue
            if not problems:
                yield job
        if problems:
            more = " (and perhaps more)" if len(problems) == MOST_PROBLEMS else ""
            raise LikenessError(
                "\n".join(problems), fix=f"Nothing has been run. Mend {len(problems)} of them{more} first"
            )

    def job(self, row: Row) -> Job:
        """Raises LikenessError with the file and line of what is wrong."""
        graph = self.with_settings(row.settings, row)
        changed = {key for key in self.graph if graph[key] is not self.graph[key]}
        for key in self.order:
            if self.classes and (key in changed or key not in self.untouched):  # else the server asks
                runner.check_node(graph[key], graph, self.schemas)
                self._ask(graph[key])
        self.untouched |= self.needed - changed
        return Job(
            key=self._key(graph),
            settings=row.settings,
            place=row.place,
            subject=row.subject,
            method=row.method,
        )

    def with_settings(self, settings: Settings, row: Row | None = None) -> Graph:
        """The graph with some inputs changed; nodes that stay the same are shared."""
        graph = dict(self.graph)
        for target, value in settings.items():
            place = (row.places.get(target) if row else "") or self.name
            node, name = runner.find_input(graph, self.schemas, target, place)
            if node.id not in self.needed:
                raise LikenessError(
                    f"{place}: {target} has no effect: no output node of {self.name} needs {node}",
                    fix="Link it, or take it out",
                )
            if isinstance(node.inputs.get(name), Link):
                raise LikenessError(
                    f"{place}: {target} comes from another node through a link",
                    fix="Set it at the node where it comes from",
                )
            changed = replace(node, inputs={**node.inputs, name: value})
            runner.check_node(changed, graph, self.schemas)  # converts "4" to 4
            graph[node.id] = changed
        return graph

    def prompt(self, job: Job) -> Prompt:
        """What is run: the job's graph, with names that no other job has."""
        graph = self.with_settings(job.settings)
        nodes = {key: replace(graph[key], inputs=dict(graph[key].inputs)) for key in self.order}
        for node in nodes.values():
            for name, value in node.inputs.items():
                if isinstance(value, str):
                    named = self._named_apart(node, name, value, job)
                    node.inputs[name] = named.replace(JOB, job.key[:ID_DIGITS]).replace(SUBJECT, job.subject)
        return to_api(nodes)

    def _named_apart(self, node: Node, name: str, value: str, job: Job) -> str:
        names_files = name in NAMES and self.schemas[node.class_type].is_output_node
        if not names_files or JOB in value:
            return value
        return f"{value}-{JOB}"

    def _ask(self, node: Node) -> None:
        if node.class_type in self.classes:
            runner.ask_node(node, self.classes[node.class_type])

    def _key(self, graph: Graph) -> str:
        nodes = {key: [graph[key].class_type, graph[key].inputs] for key in self.order}
        files = {key: self._files(graph[key]) for key in self.order}
        return hash_json({"nodes": nodes, "files": {key: mark for key, mark in files.items() if mark}})

    def _files(self, node: Node) -> str:
        """The node's own word for the files that it reads, where it has one: changed photos are a new job."""
        cls = self.classes.get(node.class_type)
        if cls is None or not hasattr(cls, "fingerprint_inputs"):
            return ""
        values = {k: None if isinstance(v, Link) else v for k, v in node.inputs.items()}
        return self._fingerprint(node.class_type, tuple(sorted(values.items())))

    def _fingerprint_of(self, class_type: str, values: tuple[tuple[str, Any], ...]) -> str:
        ask: Any = self.classes[class_type]
        return str(ask.fingerprint_inputs(**dict(values)))


def _placed(row: Row, error: LikenessError) -> str:
    told = str(error)
    return (
        told
        if any(place and told.startswith(place) for place in row.places.values())
        else (f"{row.place}: {told}" if row.place else told)
    )
