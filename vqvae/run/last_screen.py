"""The last lines of a run: what it came to, how long it took, where to look, and what to type next."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from vqvae.losses.likelihood import BITS
from vqvae.run.folder import STAGES
from vqvae.run.run import Run
from vqvae.training.duration import rounded

MOST_NAMED = 4  # code maps
NAME_WIDTH = 16


def last_screen(run: Run, figures: dict[str, Any], page: Path | None) -> str:
    """Five lines of a finished run and the next command, within 80 columns where its path is short.

    figures: by name, as in summary.json, which has all of them with their protocols. page: the report, if there is one.
    """
    where = f"{page} (every figure: summary.json)" if page else f"{run.folder.path} (every figure: summary.json)"
    lines = {
        "reconstruction": reconstruction(figures),
        "codebook": codebook(figures),
        "prior": prior(figures),
        "time": time(figures),
        "where": where,
    }
    shown = "\n".join(f"{name:{NAME_WIDTH}}{text}" for name, text in lines.items())
    return f"\n{shown}\n\nnext: {next_command(run, figures)}"


def reconstruction(figures: dict[str, Any]) -> str:
    texts = {
        "autoencoder/psnr_db": "PSNR {:.2f} dB",
        "autoencoder/searched_psnr_db": "{:.2f} with code search",
        "autoencoder/ssim": "SSIM {:.3f}",
        BITS: "{:.4g} bits per dim given the codes",
    }
    return ", ".join(text.format(figures[name]) for name, text in texts.items() if name in figures) or "not measured"


def codebook(figures: dict[str, Any]) -> str:
    found = sorted(int(name.rpartition("_")[2]) for name in figures if name.startswith("codebook/perplexity_"))
    if not found:
        return "none"
    names = ("perplexity", "used_codes", "dead_codes")
    perplexity, used, dead = ([figures[f"codebook/{name}_{m}"] for m in found] for name in names)
    most = max(u + d for u, d in zip(used, dead))
    lost = f"{sum(dead):,} dead codes" if len(found) == 1 else f"{sum(dead):,} dead codes in all"
    if len(found) > MOST_NAMED:
        least, largest = counted(min(perplexity)), counted(max(perplexity))
        return f"perplexity {least} to {largest} of {most:,} in {len(found)} maps, {lost}"
    return f"perplexity {' + '.join(map(counted, perplexity))} of {most:,}, {lost}"


def counted(perplexity: float) -> str:
    return f"{perplexity:,.0f}" if perplexity >= 1000 else f"{perplexity:.4g}"


def prior(figures: dict[str, Any]) -> str:
    for name, start in (("prior/bits_per_code", ""), ("prior/bits_per_code_bound", "at most ")):
        if name in figures:
            text = f"{start}{figures[name]:.4g} bits per code"
            text += f" ({figures['prior/bits_per_code_uniform']:.4g} without it)"
            whole = figures.get(name.replace("prior/bits_per_code", "model/bits_per_dim"))
            return text if whole is None else f"{text}, {whole:.4g} bits per dim in all"
    return "not trained"


def time(figures: dict[str, Any]) -> str:
    """Of training, without evaluations."""
    seconds = {stage: figures[f"{stage}/seconds"] for stage in STAGES if f"{stage}/seconds" in figures}
    return ", ".join(f"{stage} {rounded(one)}" for stage, one in seconds.items()) or "not measured"


def next_command(run: Run, figures: dict[str, Any]) -> str:
    """Samples where there is a prior; a prior where there are codes; else reconstructions."""
    if "prior/bits_per_code_uniform" in figures:
        program, own = "sample.py", ["class=all"] if run.class_names else []
    elif "codebook/perplexity_0" in figures:
        program, own = "train.py", ["stages=prior"]
    else:
        program, own = "sample.py", ["mode=reconstruct"]
    targets = [f"allow_targets=[{','.join(run.cfg.allow_targets)}]"] if run.cfg.allow_targets else []
    return " ".join(map(shlex.quote, ["python", program, f"run_dir={run.folder.path}", *own, *targets]))
