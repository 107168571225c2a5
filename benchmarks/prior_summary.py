"""What `benchmarks.prior` makes of its rows: medians, how many times as fast as its peers each writing is, and a table."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.measuring import grouped

PEERS = {
    "training": ["lgq_repository", "repository_way", "all_logits"],
    "maskgit": ["amused"],
    "ar": ["uncached", "llama", "llama_static"],
    "ahead": ["llama_static", "ours_plain"],
    "ahead_large": ["llama_static", "ours_plain"],
    "parallel": ["ours"],
}


def advised(batch: int) -> int:
    """The lookahead that pays on a CPU for so many images at a time: 8 for one, 4 for four, 1 from 16 on."""
    return max(1, min(8, 16 // batch))


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Medians over the rounds, and how many times as fast as its peers each writing is."""
    same = grouped(rows, lambda row: (row["part"], row["writing"], row["batch"]))
    medians = {name: statistics.median(row["seconds_per_image"] for row in found) for name, found in same.items()}
    tokens = {name: statistics.median(row.get("tokens_per_pass", 1.0) for row in found) for name, found in same.items()}
    entries = []
    for (part, writing, batch), seconds in medians.items():
        found = same[part, writing, batch]
        entry: dict[str, Any] = {"part": part, "writing": writing, "batch": batch, "rounds": len(found)}
        entry["images_per_second"] = 1 / seconds
        peers = [peer for peer in PEERS[part] if peer != writing and (part, peer, batch) in medians]
        entry |= {f"times_{peer}": medians[part, peer, batch] / seconds for peer in peers}
        if part.startswith("ahead") and writing.startswith("ours"):
            usual = 1 if writing == "ours_plain" else advised(batch)  # of rows that do not tell: older ones
            entry |= {"lookahead": found[0].get("lookahead", usual), "tokens_per_pass": tokens[part, writing, batch]}
        if (part, writing) == ("ahead_large", "ours") and ("ahead", writing, batch) in tokens:
            share = tokens["ahead", writing, batch] / tokens[part, writing, batch]
            entry["at_trained"] = {f"times_{peer}": share * medians[part, peer, batch] / seconds for peer in peers}
        entries.append(entry)
    return entries


def table(entries: list[dict[str, Any]]) -> str:
    """The summary as text: for each part, and number of images at a time, its writings side by side."""
    order = list(PEERS)
    lines = ["part         images  writing         lookahead  images/s  rounds  times as fast as"]
    for entry in sorted(entries, key=lambda entry: (order.index(entry["part"]), entry["batch"])):
        times = [f"{name.removeprefix('times_')} {value:.2f}" for name, value in entry.items() if name.startswith("times_")]
        if "at_trained" in entry:
            scaled = (f"{name.removeprefix('times_')} {value:.2f}" for name, value in entry["at_trained"].items())
            times.append(f"(at the trained prior's tokens a pass: {', '.join(scaled)})")
        start = f"{entry['part']:11s}  {entry['batch']:6d}  {entry['writing']:14s}  {entry.get('lookahead', ''):>9}"
        lines.append(f"{start}  {entry['images_per_second']:8.3f}  {entry['rounds']:6d}  {', '.join(times)}".rstrip())
    return "\n".join(lines)
