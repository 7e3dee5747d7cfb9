"""The ledger: every claim with what was measured for it, made from records and never typed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from groupnorm.files import RunFolderError
from groupnorm.lab.common.store import RunFolder
from groupnorm.lab.experiments import EXPERIMENTS
from groupnorm.lab.experiments.framework.claim import Finding, judge
from groupnorm.lab.experiments.framework.evidence import Evidence, load, summarise
from groupnorm.lab.experiments.framework.experiment import SCALES

RECORDS = Path(__file__).parent / "records"
"""The summaries that come with the package: ``NAME-SCALE.jsonl``."""


def ledger(runs: Path | None = None) -> list[Finding]:
    """Every claim, in the order of the experiments, judged by the largest scale that was run.

    Args:
        runs: a folder with the runs of ``groupnorm run``, ``NAME-SCALE`` each. None is the records that come with the
            package.

    Raises:
        RunFolderError: ``runs`` holds no run of an experiment, or one that this version does not read.
    """
    if runs is not None and not any((runs / f"{name}-{scale}").is_dir() for name in EXPERIMENTS for scale in SCALES):
        raise RunFolderError(
            f"{runs} holds no run of an experiment; expected a folder with the folders NAME-SCALE of `groupnorm run "
            f"NAME --scale SCALE`, such as {next(iter(EXPERIMENTS))}-small: give that one, or leave --runs out for the "
            f"records of the package"
        )
    found = {name: evidence(name, runs) for name in EXPERIMENTS}
    return [judge(claim, name, found[name]) for name, experiment in EXPERIMENTS.items() for claim in experiment.claims]


def evidence(name: str, runs: Path | None = None) -> Evidence | None:
    """The evidence of an experiment at the largest scale that was run, smoke left aside; None if there is none."""
    for scale in reversed(SCALES[1:]):
        if runs is None and (path := RECORDS / f"{name}-{scale}.jsonl").exists():
            return load(path)
        if runs is not None and (runs / f"{name}-{scale}" / "run.json").exists():
            return summarise(RunFolder(runs / f"{name}-{scale}"))
    return None


def as_json(findings: list[Finding]) -> list[dict[str, Any]]:
    """The ledger as plain values: one object for each claim."""
    return [_entry(finding) for finding in findings]


def _entry(finding: Finding) -> dict[str, Any]:
    claim, evidence = finding.claim, finding.evidence
    head: Mapping[str, Any] = evidence.head if evidence else {}
    effects = []
    for index, effect in enumerate(claim.effects):
        entry: dict[str, Any] = {"name": effect.name, "claimed": effect.expected}
        if finding.estimates:
            found = finding.estimates[index]
            entry |= {"mean": _number(found.mean), "low": _number(found.low), "high": _number(found.high)}
            entry |= {"n": found.n, "over": effect.over, "verdict": effect.verdict(found)}
        effects.append(entry)
    return {
        "id": claim.id,
        "statement": claim.statement,
        "source": claim.source,
        "published": claim.published,
        "refuted_by": claim.refuted,
        "experiment": finding.experiment,
        "verdict": finding.verdict,
        "effects": effects,
        "note": claim.note,
        "scale": head.get("scale"),
        "date": head.get("date"),
        "machine": "; ".join(machines(evidence)) if evidence else None,
        "records": f"{finding.experiment}-{head['scale']}.jsonl" if evidence else None,
        "command": head.get("command"),
    }


def machines(evidence: Evidence) -> list[str]:
    """The machines that the evidence comes from, with the version of torch."""
    return list(
        dict.fromkeys(f"{e.get('gpu') or e.get('cpu')}, torch {e.get('torch')}" for e in evidence.head["environments"])
    )


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(f"{value:.4g}")
