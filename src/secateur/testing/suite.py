"""The contract suite: every promise of a method, as named checks for a test runner or all in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property, partial
from typing import Any
from unittest import SkipTest

from secateur.errors import ConfigError
from secateur.methods import METHODS
from secateur.methods.contract import Method, Settings
from secateur.methods.row import MethodRow
from secateur.testing import _construction, _cutting, _searching, _selection, _training
from secateur.testing._promises import Broken, Check
from secateur.testing._subject import BUDGET, Subject
from secateur.testing.networks import NETWORKS, Network

Subjected = Callable[[Subject], None]

#: Checked on one network, each after those it builds on; their docstrings say what is promised.
PROMISES: tuple[Subjected, ...] = (
    _construction.outputs_keep_their_shape,
    _training.loss_is_a_number,
    _training.training_works,
    _training.mixed_precision_works,
    _construction.model_keeps_its_parameters,
    _training.state_is_data,
    _training.metrics_are_numbers,
    _training.evaluating_leaves_no_trace,
    _construction.bad_input_is_refused,
    _selection.scores_cover_every_channel,
    _selection.plan_is_sound,
    _selection.plan_meets_the_budget,
    _selection.plan_keeps_constraints,
    _selection.plan_follows_its_channels,
    _construction.data_are_asked_for,
    _searching.search_goes_on,
    _cutting.result_is_ordinary,
    _cutting.result_is_narrower,
    _cutting.result_follows_its_images,
    _cutting.weights_meet_the_budget,
    _cutting.result_is_the_masked_network,
    _training.seed_decides_everything,
    _training.training_goes_on,
    _cutting.finish_can_be_repeated,
    _construction.model_is_left_alone,
    _cutting.result_can_be_trained,
    _cutting.result_is_saved,
    _cutting.result_is_exported,
    _training.gpu_works,
)


#: Checked for a row's variants, on the same network, beside the cuts of two structures more.
VARIED: tuple[Subjected, ...] = (
    _training.state_is_data,
    _selection.plan_is_sound,
    _selection.plan_meets_the_budget,
    _selection.plan_follows_its_channels,
    _cutting.result_is_ordinary,
    _cutting.weights_meet_the_budget,
    _training.seed_decides_everything,
)


def check_method(
    method: MethodRow | type[Method] | Callable[..., Method],
    *,
    settings: Mapping[str, Any] | None = None,
    networks: Iterable[Network] | None = None,
) -> None:
    """Run every check; a method that comes through can be used wherever Secateur's own can.

    Args:
        method: a row as in `secateur.methods.METHODS`, a subclass of `Method`, or a function that makes one from what
            the constructor of `Method` takes.
        settings: its settings in all checks, where the defaults will not do.
        networks: on which to try it; the toy networks of `secateur.testing.networks` if not given. It may refuse some
            of them with a ModelError; most promises are checked on the first that it takes.

    Raises:
        AssertionError: a promise is broken; the message is one sentence, for the first of them.
    """
    for check in checks(method, settings=settings, networks=networks):
        with suppress(SkipTest):
            check()


def checks(
    method: MethodRow | type[Method] | Callable[..., Method],
    *,
    settings: Mapping[str, Any] | None = None,
    networks: Iterable[Network] | None = None,
) -> Iterator[Check]:
    """Every check of `check_method` by itself, to be called; nothing is done before.

    method, settings, networks: as in `check_method`.

    @pytest.mark.parametrize("check", secateur.testing.checks(MyMethod), ids=str)
    def test_contract(check):
        check()
    """
    factory, row, kind = _parts(method)
    tried = tuple(NETWORKS if networks is None else networks)
    if not tried:
        raise ConfigError("There is no network to check the method on: leave networks out, or give at least one.")
    settings = dict(settings or {})
    if row is not None and row.example_budget != BUDGET:
        settings = {"budget": row.example_budget, **settings}
    subjects = [Subject(factory, row, settings, network) for network in tried]
    main = _Main(subjects)
    if row is not None:
        yield _check(row.name, _construction.row_is_complete, row)
    if kind is not None:
        yield _check(_name(method), _construction.settings_are_data, kind)
    for promise in PROMISES:
        yield Check(promise.__name__, _words(promise), _name(method), partial(main.check, promise))
    yield from _cuts(subjects, _name(method))
    if row is not None:
        for variant in row.variants:
            yield from _varied(row, {**settings, **variant}, variant, tried)


def _cuts(subjects: Iterable[Subject], name: str, about: str = "") -> Iterator[Check]:
    """The cut on every structure."""
    cut = _cutting.structure_is_cut
    for subject in subjects:
        where = ", ".join(filter(None, (about, subject.network.name)))
        yield Check(f"{cut.__name__}[{where}]", _words(cut), name, partial(_on, cut, subject))


def _varied(
    row: MethodRow, settings: Mapping[str, Any], variant: Mapping[str, Any], tried: Iterable[Network]
) -> Iterator[Check]:
    """The checks of a row with other settings."""
    about = ", ".join(f"{key}={value}" for key, value in variant.items())
    subjects = [Subject(row.factory, row, settings, network) for network in tried]
    main = _Main(subjects)
    for promise in VARIED:
        yield Check(f"{promise.__name__}[{about}]", _words(promise), row.name, partial(main.check, promise))
    yield from _cuts(subjects[1:2] + subjects[-1:], row.name, about)  # two structures that differ most from the first


class _Main:
    """The first network that the method takes."""

    def __init__(self, subjects: list[Subject]) -> None:
        self._subjects = subjects

    @cached_property
    def subject(self) -> Subject:
        for subject in self._subjects:
            if not subject.refused:
                return subject
        raise Broken(f"it refuses every network ({', '.join(s.network.name for s in self._subjects)})")

    def check(self, promise: Subjected) -> None:
        _on(promise, self.subject)


def _on(promise: Subjected, subject: Subject) -> None:
    try:
        promise(subject)
    except Broken as broken:
        raise Broken(f"{broken} (on the network {subject.network.name!r})") from broken.__cause__


def _check(name: str, promise: Callable[[Any], None], argument: Any) -> Check:
    return Check(promise.__name__, _words(promise), name, partial(promise, argument))


def _words(promise: Callable[..., None]) -> str:
    return " ".join((promise.__doc__ or promise.__name__).split())


def _parts(method: Any) -> tuple[Callable[..., Method], MethodRow | None, type[Settings] | None]:
    """How it is made, and its row and settings where they are known."""
    if isinstance(method, MethodRow):
        return method.factory, method, method.config
    if not callable(method):
        raise ConfigError(
            f"{type(method).__name__} is no method: give a MethodRow, a subclass of Method or a function that makes it."
        )
    row = next((row for row in METHODS if row.factory is method), None)
    kind = method.Config if isinstance(method, type) and issubclass(method, Method) else None
    return method, row, row.config if row is not None else kind


def _name(method: Any) -> str:
    return str(getattr(method, "name", None) or getattr(method, "__name__", None) or type(method).__name__)
