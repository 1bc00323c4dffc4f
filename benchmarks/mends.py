"""Proves what is said of the shipped Chatterbox port: each difference at its sites, and gone with the one change that mends it.

    python benchmarks/mends.py [--stages STAGE ...] [--folder traces] [--write docs/chatterbox.md] [NAME ...]

The reference is captured once a stage with its noise floor (`reference_STAGE.h5`, used again where it is there). The port is run on it as
it ships, fed and free, and then, fed, once for each mend of `hooks/chatterbox_mends.py` that shows in the stage. What was measured is
kept in `mends.json` and printed as Markdown; with ``--write`` it is put between the marks of a page. Files and lines are those of the
installed packages.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tracediff as td
from benchmarks.recipe_runs import Errors, errors, hooks, reference_of, run_port
from tracediff.observe.recipe import load_recipe

MENDS = hooks("chatterbox_mends")
MENDS_STAGES = list(load_recipe("chatterbox", "mlx").stages)
PORT = MENDS.PORT
Place = MENDS.Place

READ: tuple[tuple[str, str, Any, Any], ...] = (
    (
        "choice",
        "The ODE's noise. The reference draws it in each call; the port keeps one array from its constructor, which also seeds MLX's "
        "global generator. The recipe puts the reference's draw into that array: the one thing that it changes in the port. `tracediff "
        "demo --fault noise_not_shared` shows the port without that. Mels of more than 15,000 frames cannot run in the port.",
        Place("chatterbox.models.s3gen.flow_matching", "CausalConditionalCFM.forward", "z = torch.randn_like(mu)"),
        Place(f"{PORT}.s3gen.flow_matching", "CausalConditionalCFM.__init__", "self.rand_noise = mx.random.normal("),
    ),
    (
        "choice",
        "A snake's alpha that is nearly 0: the port divides by at least 1e-4, the reference adds 1e-9. No seeded alpha is that small.",
        Place("chatterbox.models.s3gen.hifigan", "Snake.forward", "alpha + self.no_div_by_zero"),
        Place(f"{PORT}.s3gen.hifigan", "Snake.__call__", "mx.maximum(alpha_abs, min_alpha)"),
    ),
    (
        "choice",
        "The x-vector is divided by its norm + 1e-8, in the reference by max(norm, 1e-12): rounding, unless the norm is below 0.1.",
        Place("chatterbox.models.s3gen.flow", "CausalMaskedDiffWithXvec.inference", "F.normalize(embedding, dim=1)"),
        Place(f"{PORT}.s3gen.flow", "CausalMaskedDiffWithXvec.inference", "embedding / (norm + 1e-8)"),
    ),
    (
        "choice",
        "Tokens out of range raise in the reference and are clipped in the port.",
        Place("chatterbox.models.s3gen.flow", "CausalMaskedDiffWithXvec.inference", "if (token >= self.vocab_size).any():"),
        Place(f"{PORT}.s3gen.flow", "CausalMaskedDiffWithXvec.inference", "token = mx.clip(token, 0, num_embeddings - 1)"),
    ),
    (
        "choice",
        "The decoder's mask is all ones in the port, which takes one utterance at a time; the reference's comes from the lengths.",
        Place("chatterbox.models.s3gen.flow", "CausalMaskedDiffWithXvec.inference", "mask = (~make_pad_mask(h_lengths)).unsqueeze(1)"),
        Place(f"{PORT}.s3gen.flow", "CausalMaskedDiffWithXvec.inference", "mask = mx.ones([1, 1, total_len]"),
    ),
    (
        "choice",
        "The ODE's times are added up step by step in the port and taken from the schedule in the reference: rounding. In bfloat16 the "
        "reference keeps the schedule in that dtype, the port in float32.",
        Place("chatterbox.models.s3gen.flow_matching", "ConditionalCFM.solve_euler", "for t, r in zip(t_span[:-1], t_span[1:]):"),
        Place(f"{PORT}.s3gen.flow_matching", "ConditionalCFM.solve_euler", "t = t + dt"),
    ),
    (
        "mistake",
        "T3's forward with texts of different length: latents of different length are concatenated, which raises as soon as one is below "
        "the padded length; the reference pads with zeros. Generation does not come by.",
        Place("chatterbox.models.t3.t3", "T3.forward", "text_latents[i, :ttl[i]] = hidden_states[i, len_cond:text_end]"),
        Place(f"{PORT}.t3.t3", "T3.__call__", "hidden_states[i : i + 1, text_start:text_end, :]"),
    ),
    (
        "choice",
        "A voice given as an array at another rate than 24 kHz goes to 16 kHz from its own rate; in the reference always by way of 24 kHz.",
        Place("chatterbox.tts", "ChatterboxTTS.prepare_conditionals", "librosa.resample(s3gen_ref_wav, orig_sr=S3GEN_SR, target_sr=S3_SR)"),
        Place(f"{PORT}.chatterbox", "Model.prepare_conditionals", "ref_wav_16k_full = resample_audio(ref_wav, ref_sr, S3_SR)"),
    ),
)
"""What was read in the two packages, and no seeded stage shows: kind, what it is, where on either side."""


# -- running


def captured(to: Path, stage: str, reference: Path, *mends: str, is_fed: bool = True) -> Path:
    """A stage of the port captured to a new trace, fed by the reference or free; with ``mends`` it lacks those differences."""
    return run_port(to, [stage], reference, *([lambda models: MENDS.mended(models, *mends)] if mends else []), is_fed=is_fed)


def measured(names: list[str], stages: list[str], folder: Path) -> None:
    """Measures these stages of the port as it ships, and then the mends that show in them, and keeps what was seen.

    Each is made by itself; where a site is still beyond what is allowed, since others show there too, all of the stage's are made at once.
    """
    for stage in stages:
        given = reference_of(stage, folder)
        forced = captured(folder / "mends_forced.h5", stage, given)
        free = captured(folder / "mends_free.h5", stage, given, is_fed=False)
        status = json.loads(td.status(given, forced, free).to_json())
        rows = [row for row in status["stages"] if row["stage"] == stage]
        keep(folder, "stages", stage, rows[0] if rows else None)
        shipped = errors(given, forced, [stage])
        together: Errors = {}
        for name in names:
            sites = [site for place, site in MENDS.MENDS[name].sites if place == stage and (stage, site) in shipped]
            if not sites:
                continue
            after = errors(given, captured(folder / "mends_mended.h5", stage, given, name), [stage])
            if not together and any(error > limit for error, limit in (after.get((stage, site), LOST) for site in sites)):
                together = errors(given, captured(folder / "mends_mended.h5", stage, given, *MENDS.mends_of(stage)), [stage])
            seen = [
                [site, *shipped[stage, site], *(errors.get((stage, site), LOST)[0] for errors in (after, together) if errors)]
                for site in sites
            ]
            keep(folder, f"mend {name}", stage, seen)


LOST = (float("inf"), 0.0)
"""The error and the limit of a site that a run no longer comes by."""


def read(folder: Path) -> dict[str, Any]:
    """What was measured."""
    path = folder / "mends.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return found


def keep(folder: Path, what: str, stage: str, seen: Any) -> None:
    """Adds what was seen of a stage to the file."""
    kept = read(folder)
    kept.setdefault(what, {})[stage] = seen
    (folder / "mends.json").write_text(json.dumps(kept, indent=1))


# -- telling


def stage_lines(stages: dict[str, Any]) -> Iterator[str]:
    """The table of the stages, forced and free."""
    yield "| stage | forced | free | first divergence, forced |"
    yield "|---|---|---|---|"
    for stage in MENDS_STAGES:
        row = stages.get(stage)
        if row is None:
            yield f"| `{stage}` | not measured here | | |"
            continue
        first = (row["forced"] or {}).get("first")
        where = "" if not first else f"`{first['reference']}` {first['end']}"
        yield f"| `{stage}` | {outcome(row['forced'])} | {outcome(row['free'])} | {where} |"


def outcome(one: dict[str, Any] | None) -> str:
    """One stage in one run: its state, how much was compared, the worst error and its floor."""
    if one is None:
        return ""
    state = f"**{one['state']}**" if one["state"] == "different" else one["state"]
    numbers = "" if one["worst"] is None else f", {one['worst']:.1e}" + (f" (floor {one['floor']:.1e})" if one["floor"] else "")
    return f"{state}{numbers}, {one['compared']:,}/{one['total']:,}"


def mend_lines(kept: dict[str, Any]) -> Iterator[str]:
    """The table of the mends, then what each is."""
    yield "| mend | kind | reference | port | where it shows | shipped | allowed | mended |"
    yield "|---|---|---|---|---|---:|---:|---:|"
    for name, mend in MENDS.MENDS.items():
        facts = f"| `{name}` | {mend.kind} | `{mend.reference}` | `{mend.port}` |"
        seen = kept.get(f"mend {name}", {})
        for stage, rows in seen.items():
            yield from (
                f"{facts} {stage}, `{site}` | {number(before)} | {number(limit)} | {after(limit, *left)} |"
                for site, before, limit, *left in rows
            )
        for stage in dict.fromkeys(stage for stage, _ in mend.sites if stage not in seen):
            yield f"{facts} {stage}: not measured here | | | |"
        if not mend.sites:
            yield f"{facts} no stage comes by | | | |"
    yield ""
    yield from (f"- `{name}` ({mend.kind}). {mend.text}" for name, mend in MENDS.MENDS.items())


def after(limit: float, alone: float, together: float | None = None) -> str:
    """What is left with one mend, and where that is too much, with all that show in the stage."""
    return number(alone) if alone <= limit or together is None else f"{number(alone)}; with the others {number(together)}"


def number(value: float | None) -> str:
    return "" if value is None else "other" if value == float("inf") else f"{value:.1e}"


def read_lines() -> Iterator[str]:
    """What no stage shows."""
    yield "| kind | reference | port | what differs |"
    yield "|---|---|---|---|"
    yield from (f"| {kind} | `{reference}` | `{port}` | {text} |" for kind, text, reference, port in READ)


def blocks(kept: dict[str, Any]) -> dict[str, list[str]]:
    """The generated parts of the page, by their marks."""
    return {"stages": list(stage_lines(kept.get("stages", {}))), "mends": list(mend_lines(kept)), "read": list(read_lines())}


def written(page: str, parts: dict[str, list[str]]) -> str:
    """The page with these parts between their marks, ``<!-- NAME -->`` and ``<!-- /NAME -->``. ValueError where one is missing."""
    for name, lines in parts.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        if begin not in page or end not in page:
            raise ValueError(f"The page has no marks {begin.strip()!r} and {end!r} to write between.")
        head, tail = page.split(begin, 1)[0], page.split(end, 1)[1]
        page = head + begin + "\n".join(lines) + "\n" + end + tail
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="mends; all by default")
    parser.add_argument(
        "--stages", nargs="*", default=MENDS_STAGES, help="stages to measure; all by default, none only tells what was seen"
    )
    parser.add_argument("--folder", type=Path, default=Path("traces"), help="where the traces and mends.json are written")
    parser.add_argument("--write", type=Path, help="a Markdown page with marks, such as docs/chatterbox.md")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    measured(arguments.names or list(MENDS.MENDS), arguments.stages, arguments.folder)
    parts = blocks(read(arguments.folder))
    if arguments.write:
        arguments.write.write_text(written(arguments.write.read_text(encoding="utf-8"), parts), encoding="utf-8")
    for lines in parts.values():
        print("\n".join(lines), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
