"""``python -m normbench.norms``: the registry as a table of names, traits and papers."""

from __future__ import annotations

from normbench.norms import get, names


def table() -> str:
    """One line per normalizer."""
    header = ("name", "mixes samples", "train ≠ eval", "from batch", "method", "paper", "options")
    lines: list[tuple[str, ...]] = [header]
    for row in map(get, names()):
        options = " ".join(f"{option}={default}" for option, default in row.options.items())
        flags = tuple("yes" if flag else "no" for flag in (row.mixes_samples, row.train_eval_differ))
        lines.append((row.name, *flags, str(row.least_batch), row.method, row.paper or "-", options))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


if __name__ == "__main__":
    print(table())
