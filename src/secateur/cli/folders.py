"""Commands on the folder of a run: write its report anew, check it, export its network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secateur.cli._base import AsJson, Quiet, emit, interruptible, show, working
from secateur.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import RenderableType

_EXPORT_INTERRUPTED = "Interrupted: the run and its network are kept; the same command begins the export again."
Run = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a finished run.")]


def report(
    folder: Run,
    others: Annotated[
        list[Path],
        typer.Option("--others", metavar="DIR", help="Another run, for the picture of accuracy and MACs. Repeatable."),
    ] = [],  # noqa: B006  # typer copies it
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write a run's report.html anew, and show its headline.

    \b
    Examples:
      secateur report runs/a
      secateur report runs/a --others runs/b --others runs/c
    """
    from secateur.report.html import write_report
    from secateur.report.run_tables import headline_table

    page = write_report(folder, others)
    if as_json:
        emit({"format": "secateur.report", "version": 1, "report": str(page)}, True, lambda: "")
        return
    if not quiet:
        show(headline_table(folder))
    show(str(page) if quiet else f"Report: {page}", wrap=False)


def verify(folder: Run, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Check a run's folder: hashes, plan and exported files.

    The plan must fit the weights, and exported files must compute what the weights do. Exits with 2 and one
    sentence at the first thing that is wrong.

    \b
    Examples:
      secateur verify runs/a
      secateur verify runs/a --json
    """
    from secateur.runtime import check_folder

    with working("Checking", quiet or as_json):
        checked = check_folder(folder)
    if as_json or not quiet:
        emit(checked, as_json, lambda: _checked(folder, checked))


def export(
    folder: Run,
    form: Annotated[
        str, typer.Option("--format", metavar="NAME", help="onnx, pt2 (torch.export), openvino or executorch.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to write. Default: model.* in the run's folder.")
    ] = None,
    int8: Annotated[
        bool,
        typer.Option(
            "--int8", help="In 8 bits (onnx, openvino), with the run's own images to calibrate and to test with."
        ),
    ] = False,
    opset: Annotated[int | None, typer.Option(metavar="N", help="Of ONNX. Default: the exporter's own.")] = None,
    open_size: Annotated[
        bool, typer.Option("--open-size", help="Leave the height and width of images open, as well as their number.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write a run's network in a format that needs no code.

    The file is compared with the network before it is left.

    \b
    Examples:
      secateur export runs/a --format onnx
      secateur export runs/a --format pt2 --out small.pt2
      secateur export runs/a --format openvino --int8
      secateur export runs/a --format onnx --opset 20 --open-size
    """
    from secateur.runtime import check_target, export_folder

    if int8 and (opset is not None or open_size):
        raise ConfigError("--int8 takes neither --opset nor --open-size: leave one of them out.")

    if out is not None:
        check_target(out, "--out")
    with interruptible(lambda: _EXPORT_INTERRUPTED), working("Exporting", quiet or as_json):
        if int8:
            from secateur.runs.exporting import export_int8

            found = export_int8(folder, form, out)
        else:
            found = export_folder(folder, form, out, opset=opset, open_size=open_size)
    if as_json or not quiet:
        if int8:
            said = f"{found['path']}: in 8 bits {found['said']} on {found['images']:,} test images."
        else:
            said = f"{found['path']}: differs from the network by {found['max_relative_error']:.1e} at most."
        emit({"format": "secateur.export", "version": 1, "kind": form, **found}, as_json, lambda: said)


def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a finished run or a saved network.")],
    name: Annotated[str, typer.Argument(metavar="ORG/NAME", help="What it is called on the Hub.")],
    private: Annotated[bool, typer.Option("--private", help="Only for those the owner lets in.")] = False,
    licence: Annotated[str | None, typer.Option(metavar="ID", help="Of the Hub's list, such as apache-2.0.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Send a pruned network to the Hugging Face Hub.

    Its card is made of its plan and figures.

    \b
    Examples:
      secateur push runs/a org/name
      secateur push small org/name --private --licence apache-2.0
    """
    from secateur.runtime import push_to_hub

    with working("Sending", quiet or as_json):
        address = push_to_hub(folder, name, private=private, licence=licence)
    if as_json or not quiet:
        emit({"format": "secateur.push", "version": 1, "address": address}, as_json, lambda: address)


def _checked(folder: Path, checked: Mapping[str, Any]) -> RenderableType:
    """What was checked, a line each, and what was not."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 1))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for what, said in _told(checked):
        table.add_row(what, Text(said))
    left = [Text(f"Not checked: {sentence}", "dim") for sentence in checked["not_checked"]]
    return Group(Text(f"The run in {folder} is sound.", "bold"), table, *left)


def _told(checked: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    from secateur._hints import readable

    weights, plan = checked["weights"], checked["plan"]
    yield "files", f"{checked['files']}, each as its recorded hash says"
    yield "weights", f"{readable(weights['numbers'])} numbers in {weights['tensors']} tensors"
    yield "plan", f"{plan['channels']} channels in {plan['groups']} groups, as in the weights"
    for what, found in checked.items():
        if what in ("weights", "plan") or not isinstance(found, Mapping):
            continue
        yield _NAMES.get(what, what), f"{_AGREES.get(what, 'gives what the network gives')}{_error(found)}"


def _error(found: Mapping[str, Any]) -> str:
    """The error of a comparison; nothing where there was none."""
    proof = "" if found.get("exact", True) else ", with these channels removed and not masked"
    batch = "" if found.get("dynamic_batch", True) else ", for one batch size"
    if "max_relative_error" not in found:
        return f"{proof}{batch}"
    return f"{proof}{batch} (relative error {found['max_relative_error']:.1e}, at most {found['tolerance']:.0e})"


_NAMES = {"pt2": "model.pt2", "onnx": "model.onnx"}
_AGREES = {"cut": "gives what the original network gives"}
