"""Draw docs/accuracy_latency.png from the run of `make train`: accuracy against microseconds per node, one at a time.

python -m bench.models.picture [RUN_DIR]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[2]


def main(run: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    models = [result, result["teacher"], *result["others"]]
    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    for model in models:
        name, accuracy = model["model"], 100 * model["test_at_best_val"]
        microseconds = result["us_per_node"][name]["batch_1"]
        axes.scatter(microseconds, accuracy, s=60)
        digits = 0 if microseconds >= 10 else 1
        text = f"{name}: {accuracy:.1f}%, {microseconds:,.{digits}f} us"
        axes.annotate(text, (microseconds, accuracy), (0, 9), textcoords="offset points", ha="center")
    axes.set(xscale="log", xlabel="microseconds to answer one node (log)", ylabel="test accuracy, %")
    axes.set_title(f"gmoe_ext {result['version']}, `make train`, {result['threads']} threads", fontsize=10)
    axes.margins(x=0.35, y=0.25)
    axes.grid(alpha=0.3)
    figure.savefig(ROOT / "docs" / "accuracy_latency.png", dpi=130)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "runs" / "synthetic-0")
