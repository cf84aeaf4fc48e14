"""What a run's test looked like: confusion matrix or scatter, generated text, and the samples that came out worst."""

from collections.abc import Sequence
from html import escape
from typing import Any

from leyden.cli.report.saved_run import SavedRun
from leyden.cli.report.svg import Line, matrix_chart, scatter_chart

__all__ = ["evaluation_figures", "evaluation_section"]


WIDE = {"generated_text": "Generated text", "worst_samples": "Worst samples"}  # these take the page's whole width


def evaluation_section(runs: Sequence[SavedRun]) -> str:
    """The tests of the runs as a section of the page; empty if nothing of them can be shown."""
    small, wide = [], []
    for run in runs:
        suffix = f": {run.name}" if len(runs) > 1 else ""
        for name, html in evaluation_figures(run, suffix).items():
            if name not in WIDE:
                small.append(html)
            elif suffix:
                wide.append(f"<details><summary>{WIDE[name]}{escape(suffix)}</summary>{html}</details>")
            else:
                wide.append(f"<h3>{WIDE[name]}</h3>{html}")
    grid = f'<div class="grid">{"".join(small)}</div>' if small else ""
    return f"<h2>Test</h2>{grid}{''.join(wide)}" if small or wide else ""


def evaluation_figures(run: SavedRun, suffix: str = "") -> dict[str, str]:
    """The pictures of the test as HTML, by name.

    Args:
        run: whose test it was.
        suffix: of the figures' headings.
    """
    test: dict[str, Any] = run.test or {}
    samples = f"{test.get('num_samples', 0):,} test samples, 1 run"
    figures: dict[str, str] = {}
    if "confusion" in test:
        chart = matrix_chart(test["confusion"], test["class_names"], label="Confusion matrix of the test")
        caption = f"{samples}. Shade: share of the true class; blue is right, orange is wrong"
        figures["confusion_matrix"] = _figure(f"Confusion matrix{suffix}", chart, caption)
    if "confused_pairs" in test:
        rows = [(pair["target"], pair["prediction"], pair["count"]) for pair in test["confused_pairs"]]
        table = _table(("true class", "predicted class", "samples"), rows)
        figures["confused_pairs"] = _figure(f"Most confused classes{suffix}", table, samples)
    if "pairs" in test:
        figures["scatter"] = _scatter(test, samples, suffix)
    if "generated" in test:
        texts = [
            f'<pre class="text"><span class="given">{escape(one["prompt"])}</span>{escape(one["text"])}</pre>'
            for one in test["generated"]
        ]
        caption = "Grey: prompts from the test text; then the most likely token each time. Tested weights, 1 run"
        figures["generated_text"] = f'<p class="soft">{caption}</p>{"".join(texts)}'
    if test.get("worst"):
        figures["worst_samples"] = _worst(test["worst"])
    return figures


def _scatter(test: dict[str, Any], samples: str, suffix: str) -> str:
    columns = test["pairs"]
    groups = [
        Line("samples" if len(columns) == 1 else f"output {number}", [tuple(pair) for pair in pairs], number)
        for number, pairs in enumerate(columns)
    ]
    chart = scatter_chart(
        groups,
        label="Prediction against target, test",
        x_label="target (in the unit the network sees)",
        y_label="prediction (same unit)",
    )
    shown = sum(map(len, columns))
    caption = f"{samples}; {shown:,} points; on the dashed line they agree"
    return _figure(f"Prediction against target{suffix}", chart, caption)


def _worst(samples: Sequence[dict[str, Any]]) -> str:
    if "text" in samples[0]:
        body = "".join(
            f'<p class="soft">sample {_cell(sample["index"])}, loss {sample["loss"]:.3g} per token</p>'
            f'<pre class="text">{escape(sample["text"])}</pre>'
            for sample in samples
        )
    elif "image" in samples[0]:
        body = f'<div class="samples">{"".join(map(_picture, samples))}</div>'
    else:
        names = list(samples[0].get("values", {}))
        rows = [
            [*(sample[key] for key in ("index", "target", "prediction", "loss")), *sample.get("values", {}).values()]
            for sample in samples
        ]
        body = f'<div class="scroll">{_table(("sample", "target", "prediction", "loss", *names), rows)}</div>'
    intro = f"The {len(samples)} samples of the test with the greatest loss, the greatest first"
    return f'<p class="soft">{intro}</p>{body}'


def _picture(sample: dict[str, Any]) -> str:
    prediction, target, index = (_cell(sample[key]) for key in ("prediction", "target", "index"))
    lines = [f"<b>{prediction}</b>, right" if prediction == target else f"<b>{prediction}</b> for <b>{target}</b>"]
    if "probability" in sample:
        lines.append(f"truth had {sample['probability']:.1%}")
    lines.append(f"loss {sample['loss']:.3g}, no. {index}")
    alt = f"sample {index}: predicted {prediction}, target {target}"
    image = f'<img src="data:image/png;base64,{escape(sample["image"])}" alt="{alt}">'
    return f"<figure>{image}<figcaption>{'<br>'.join(lines)}</figcaption></figure>"


def _figure(title: str, content: str, caption: str) -> str:
    return f"<figure><h3>{escape(title)}</h3>{content}<figcaption>{escape(caption)}</figcaption></figure>"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = ["".join(f"<th>{escape(cell)}</th>" for cell in head)]
    lines += ["".join(f"<td>{_cell(cell)}</td>" for cell in row) for row in rows]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else escape(str(value))
