"""The Markdown page of `python -m benchmarks.card`."""

from collections.abc import Mapping
from typing import Any

from benchmarks.card_step import FEATURES


def page(found: Mapping[str, Any], rounds: int) -> str:
    lines = [
        f"# One card: {found['card']}",
        "",
        f"torch {found['torch']}, commit {found['commit']}; {FEATURES} features, bf16 products, "
        f"{rounds} rounds in which variants alternate: median (quartiles).",
        "",
        "| classes | images | margin | variant | ms | card ms | of three products | extra MB |",
        "|--:|--:|:--|:--|--:|--:|--:|--:|",
    ]
    for row in found["classifier"]:
        least = row["variants"]["three products"]["card_ms"]
        for name, own in row["variants"].items():
            low, high = own["quartiles"]
            lines.append(
                f"| {row['classes']:,} | {row['images']:,} | {row['margin']} | {name} | "
                f"{own['ms']:.2f} ({low:.2f} - {high:.2f}) | {own['card_ms']:.2f} | "
                f"{own['card_ms'] / least:.2f} | {own['extra_mb']:,.0f} |"
            )
    lines += ["", "Errors against torch in float64:", ""]
    for name, own in found["errors"].items():
        lines.append(f"* {name}: " + ", ".join(f"{key} {value:.1e}" for key, value in own.items()))
    lines += [
        "",
        "The trainer's step, ResNet-50:",
        "",
        "| classes | batch | K | margin | ms | card ms | images/s | host waits | peak GB "
        "| predicted |",
        "|--:|--:|--:|:--|--:|--:|--:|--:|--:|--:|",
    ]
    for row in found["steps"]:
        images = row["batch"] * row["passes"]
        lines.append(
            f"| {row['classes']:,} | {row['batch']} | {row['passes']} | {row['margin']} | "
            f"{row['ms']:.1f} | {row['card_ms']:.1f} | {images / row['ms'] * 1e3:,.0f} | "
            f"{row['host_waits']} | {row['peak_gb']:.2f} | "
            f"{row['predicted_gb'] / row['peak_gb'] - 1:+.1%} |"
        )
    return "\n".join(lines) + "\n"
