"""The tokenizer: CLIP's byte-level BPE, learned from the caption corpus and a few hundred plain words.

``sks``, ``ohwx`` and ``zwx`` are single tokens that no caption uses: rare identifiers.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Regex as Pattern
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from .. import captions, world

START, END = "<|startoftext|>", "<|endoftext|>"
RARE_WORDS = ("sks", "ohwx", "zwx")
MAX_LENGTH = 48  # captions have 28 at most; CLIP's 77 would cost half as much again in every step
_CLIP_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
PLAIN_WORDS = """
the of and to in is that it was for on are as with his they be at one have this from or had by hot but
some what there we can out other were all your when up use word how said an each she which do their time
if will way about many then them would write like so these her long make thing see him two has look more
day could go come did my sound no most number who over know water than call first people may down side
been now find any new work part take get place made live where after back little only round man year
came show every good me give our under name very through just form much great think say help low line
before turn cause same mean differ move right boy old too does tell sentence set three want air well
also play small end put home read hand port large spell add even land here must big high such follow act
why ask men change went light kind off need house picture try us again animal point mother world near
build self earth father head stand own page should country found answer school grow study still learn
plant cover food sun four thought let keep eye never last door between city tree cross since hard start
might story saw far sea draw left late run while press close night real life few stop open seem together
next white children begin got walk example ease paper often always music those both mark book letter
until mile river car feet care second group carry took rain eat room friend began idea fish mountain
north once base hear horse cut sure watch color face wood main enough plain girl usual young ready above
ever red list though feel talk bird soon body dog family direct pose leave song measure state product
black short numeral class wind question happen complete ship area half rock order fire south problem
piece told knew pass farm top whole king size heard best hour better true during hundred remember step
early hold west ground interest reach fast five sing listen six table travel less morning ten simple
several vowel toward war lay against pattern slow center love person money serve appear road map science
rule govern pull cold notice voice fall power town fine certain fly unit lead cry dark machine note wait
plan figure star box noun field rest correct able pound done beauty drive stood contain front teach week
final gave green oh quick develop sleep warm free minute strong special mind behind clear tail produce
fact street inch lot nothing course stay wheel full force blue object decide surface deep moon island
foot yet busy test record boat common gold possible plane age dry wonder laugh thousand ago ran check
game shape yes hot miss brought heat snow bed bring sit perhaps fill east weight language among painting
drawing sketch style realistic cartoon background statue photograph rendering cropped closeup bright
dirty clean weird cool nice toy doll sitting standing holding wearing riding playing table chair forest
beach mountain park garden kitchen street cloud purple yellow orange pink brown grey
""".split()  # noqa: SIM905


def train(state_dir: Path, count: int = 20_000) -> Path:
    """Learn the tokenizer; ``tokenizer/`` in ``state_dir`` then holds vocab.json and merges.txt."""
    folder = state_dir / "tokenizer"
    if not (folder / "merges.txt").exists():
        vocabulary, merges = _learn(count)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="ascii")
        (folder / "tokenizer_config.json").write_text(json.dumps(_config(), indent=1), encoding="ascii")
        (folder / "special_tokens_map.json").write_text(json.dumps(_special(), indent=1), encoding="ascii")
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    return folder


def _learn(count: int) -> tuple[dict[str, int], list[str]]:
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=END))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Pattern(_CLIP_SPLIT), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    corpus = [*captions.corpus(count), *[" ".join(PLAIN_WORDS)] * 20, *[" ".join(RARE_WORDS)] * 400]
    corpus += [" ".join((*world.COLOURS, *world.NOUNS, *world.PATTERNS))] * 200
    trainer = trainers.BpeTrainer(
        vocab_size=1900,
        min_frequency=2,
        end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus, trainer)
    learned = json.loads(bpe.to_str())["model"]["merges"]
    return _clip_order([tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in learned])


def _clip_order(merges: list[tuple[str, ...]]) -> tuple[dict[str, int], list[str]]:
    """CLIP's vocabulary order: bytes, bytes that end a word, merges, start, end."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [
        *letters,
        *[letter + "</w>" for letter in letters],
        *["".join(pair) for pair in merges],
        START,
        END,
    ]
    return {token: i for i, token in enumerate(dict.fromkeys(tokens))}, [" ".join(pair) for pair in merges]


def _special() -> dict[str, str]:
    return {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}


def _config() -> dict[str, object]:
    return {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": MAX_LENGTH,
        "do_lower_case": True,
        "errors": "replace",
        "add_prefix_space": False,
        **_special(),
    }
