"""What a leaderboard says in sentences: title, who is first and who is not told apart, what is missing, and how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from secateur.report.board.tables import (
    NONE,
    WHOLE,
    Document,
    Row,
    budgets,
    means_at,
    percents,
    places,
    scale_of,
    task_of,
)
from secateur.report.page import described, words
from secateur.report.page.headline import RUNTIMES
from secateur.report.page.hero import Card


def title(document: Document) -> str:
    recipe = document["recipe"]
    data = words.data_set(recipe["data"]["name"])
    number = sum(of["label"] != WHOLE for of in document["methods"])
    return f"{words.network(recipe['model']['reference'])} on {data}: {words.number_of(number, 'method')} compared"


def summary(document: Document) -> list[str]:
    """Which mean is the best at each budget, in sentences that do not say more than was measured."""
    said = [ranking(document, budget) for budget in budgets(document)]
    failed, missing = len(document["failed"]), len(document["missing"])
    if failed or missing:
        parts = [f"{failed} failed"] * (failed > 0) + [f"{missing} are not finished yet"] * (missing > 0)
        every = words.number_of(failed + missing + len(document["rows"]), "run")
        said.append(f"Of {every}, {' and '.join(parts)}.".replace(" 1 are ", " 1 is "))
    return said or ["No run is finished yet."]


def ranking(document: Document, budget: str) -> str:
    """The best mean at a budget, who is not told apart from it and by which test, and the whole network."""
    task = task_of(document)
    means = [mean for mean in means_at(document, budget) if mean["label"] != WHOLE]
    best, which = means[0], "highest" if task.higher_is_better else "lowest"
    of = "" if task.headline == "accuracy" else f" {task.headline}"
    unit = {"share": "%", "dB": " dB"}.get(task.unit, "")
    seeds = words.number_of(len(best["seeds"]), "seed")
    final = f"{percents(best['values']['accuracy.final'], scale=scale_of(document))}{unit} ({seeds})"
    ties = _ties(document, budget, [mean["label"] for mean in means[1:]])
    return f"At {budget}, {best['label']} has the {which} mean{of}, {final}{ties}.{_whole(document, budget)}"


def _ties(document: Document, budget: str, others: Sequence[str]) -> str:
    """Who is not told apart from the best, by which test."""
    place = places(document, budget)
    tied = [label for label in others if place.get(label) == "tie"]
    if not others or not place:
        return ""
    if not tied and any(place.get(label) == NONE for label in others):
        return "; one seed cannot rank methods"
    tested = [row for row in document["paired"]["budgets"][budget]["others"].values() if row["p"] is not None]
    tests = " and ".join(sorted({row["test"] for row in tested}))
    pairs = sorted({row["n"] for row in tested})
    how = f"({tests}, n = {' or '.join(map(str, pairs))}, Holm over {words.number_of(len(tested), 'network')}, 5%)"
    if not tied:
        return f", and all others are significantly below it {how}"
    return f"; not significantly different from it: {words.several(tied, 30)} {how}"


def _whole(document: Document, budget: str) -> str:
    """How the whole network, trained for as long, stands to the best."""
    said = {
        "above": "is significantly above it",
        "below": "is significantly below it",
        "tie": "is not significantly different from it",
    }.get(places(document, budget).get(WHOLE, ""))
    return f" The dense network, trained for as many epochs, {said}." if said else ""


def methods(document: Document) -> list[tuple[str, str, list[str]]]:
    """Name, what it is and how near to its paper, and what its runs noted."""
    found = []
    for of in document["methods"]:
        paper = f" ({of['paper']}, {of['year']}" + (f", arXiv:{of['arxiv']})" if of["arxiv"] else ")")
        paper = "" if of["paper"] == "none" else paper  # the whole network, which is no method
        notes = [note for row in document["rows"] if row["label"] == of["label"] for note in row["notes"]]
        found.append((of["label"], f"{of['summary']}{paper}. Fidelity: {of['fidelity']}", list(dict.fromkeys(notes))))
    return found


def absent(document: Document) -> list[str]:
    """Runs that failed, with the reason, and runs that are not finished."""
    failed = [f"{_which(row)} failed: {row['said']}" for row in document["failed"]]
    missing = [f"{_which(row)} is not finished: the same command continues it." for row in document["missing"]]
    untimed = [f"{_which(row)} was not timed: {row['untimed']}" for row in document["rows"] if row["untimed"]]
    return [*failed, *missing, *untimed]


def circumstances(document: Document) -> list[tuple[str, str]]:
    """When, where, on what and with what."""
    recipe, data = document["recipe"], document["data"] or document["recipe"]["data"]
    jobs = sorted({call["jobs"] for call in document["calls"]})
    at_once = " or ".join(map(str, jobs)) + (" at a time" if jobs != [1] else " at a time, nothing of ours beside it")
    seeds = sorted({row["seed"] for row in document["rows"]})
    return [
        ("Date", words.moment(document["date"])),
        ("Begun", words.moment(document["calls"][0]["date"])),
        ("Commands", "; ".join(commands(document))),
        ("Network", f"{recipe['model']['reference']}: {_cost(document['dense'])}"),
        ("Data", "; ".join(f"{what}: {text}" for what, text in described.data(data)) or NONE),
        ("Seeds", ", ".join(map(str, seeds)) or NONE),
        ("Device", ", ".join(document["device"]) or NONE),
        ("Threads of each process", ", ".join(map(str, document["threads"])) or NONE),
        ("Runs", at_once),
        ("Latency", _timing(recipe["latency"])),
        (
            "Versions",
            f"Secateur {document['secateur']}, PyTorch {', '.join(document['torch']) or NONE}, "
            f"Python {', '.join(document['python']) or NONE}",
        ),
        ("Settings given", _given(document["settings"])),
    ]


def commands(document: Document) -> list[str]:
    """What was typed, without repetitions."""
    return list(dict.fromkeys(call["command"] or "from Python" for call in document["calls"]))


def cards(document: Document) -> tuple[Card, ...]:
    """The figures that are remembered, at the first budget: the best mean, the whole network, and the fastest."""
    if not budgets(document):
        return ()
    budget, task, scale = budgets(document)[0], task_of(document), scale_of(document)
    means = means_at(document, budget)
    pruned = [mean for mean in means if mean["label"] != WHOLE]
    told = places(document, budget)
    others = [told.get(mean["label"]) for mean in pruned[1:]]
    sure = bool(others) and all(place == "below" for place in others)
    unit = {"share": "%", "dB": " dB"}.get(task.unit, "")

    def figure(mean: Mapping[str, Any]) -> str:
        return percents(mean["values"]["accuracy.final"], scale=scale, alone=True) + unit

    def shares(mean: Mapping[str, Any]) -> str:
        left = [f"{words.percent(mean['values'][f'{key}.share']['mean'])} of the {name}" for key, name in _COSTS]
        return f"with {words.several(left)}"

    best = pruned[0]
    note = "significantly the best" if sure else "not significantly better than all others" if others else ""
    if set(others) == {NONE}:
        note = "one seed cannot rank methods"
    found = [Card(figure(best), f"{task.headline} of {best['label']}, the best mean", (shares(best), note), sure)]
    found += [
        Card(figure(mean), f"{task.headline} of the dense network", ("trained for as many epochs",))
        for mean in means
        if mean["label"] == WHOLE
    ]
    timed = [
        (of["ratio"], mean["label"], RUNTIMES.get(name, name))
        for mean in pruned
        for name, of in mean["latency"].items()
        if (of["ratio"].get("low") or 0) > 1
    ]
    if timed:
        ratio, label, runtime = max(timed, key=lambda one: one[0]["mean"])
        between = f"95% interval {words.ratio(ratio['low'])} to {words.ratio(ratio['high'])}"
        found.append(Card(words.ratio(ratio["mean"]), f"faster on {runtime}: {label}", (between,)))
    return tuple(found)


_COSTS = (("macs", "MACs"), ("params", "parameters"))


def _given(settings: Mapping[str, Mapping[str, Any]]) -> str:
    """Settings of methods and repairs, where they are not as by default."""
    said = [f"{name}: {key} {words.plain(value)}" for name, own in settings.items() for key, value in own.items()]
    return "; ".join(said) or "none, all as by default"


def _which(row: Row) -> str:
    return f"{row['label']}, seed {row['seed']}, {row['budget']}"


def _timing(latency: Mapping[str, Any] | None) -> str:
    if latency is None:
        return "not measured"
    return (
        f"batch of {latency['batch_size']}, {words.number_of(latency['threads'], 'thread')}, dense and pruned in "
        f"turns, {latency['repeats']} times; after all training, one run after another"
    )


def _cost(dense: Mapping[str, int]) -> str:
    return f"{words.count(dense['macs'])} MACs, {words.count(dense['params'])} parameters"
