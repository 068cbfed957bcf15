"""The stages of a run: each begins from files, does its part, leaves files and says what it measured.

pretrain  plain training                          train   the method acts, or the dense (or narrow) network is trained
prune     score, plan, cut, verify                finetune  training of the narrow network
longer    finetune's epochs for the dense network export    model.onnx, model.pt2 and others
latency   dense beside pruned
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from torch import nn

from secateur import runtime
from secateur._files import write_json
from secateur._progress import listening
from secateur.errors import RunError, SecateurWarning
from secateur.methods import Method
from secateur.methods.kit.sparse import keep_zeros
from secateur.plan import Plan
from secateur.recipe import Training
from secateur.repair import Repair, repairs
from secateur.runs.calibration import Calibration, Classes, calibration, single_images
from secateur.runs.documents import describe_cut
from secateur.runs.exporting import write_exports
from secateur.runs.folder import CHECKPOINTS, LATENCY, MODEL, PLAN, SEARCH, Folder
from secateur.runs.preparing import Prepared
from secateur.runs.workers import trials
from secateur.runtime.deploying import RUN_BY, placed
from secateur.runtime.named import Named
from secateur.runtime.sparse import FILE as SPARSE
from secateur.runtime.sparse import save_sparse
from secateur.surgery import apply
from secateur.training import Engine, Fitted
from secateur.training.randomness import derive, preserved, seed_all

DENSE, PRUNED = f"{CHECKPOINTS}/dense.safetensors", f"{CHECKPOINTS}/pruned.safetensors"
Values = dict[str, Any]
Done = tuple[Values, list[str]]  # what was measured, and the files that were written


class Stages:
    """One run at work. Of several processes all do the same, as training and evaluating need them together; the first
    alone writes files."""

    def __init__(self, prepared: Prepared, folder: Folder, engine: Engine) -> None:
        self.prepared, self.folder, self.engine = prepared, folder, engine
        self.recipe, self.data = prepared.recipe, prepared.data
        self._tested = 0.0  # seconds of the stage at work that went to the test images
        self._told = 0  # how many of the engine's notes are in the folder

    def run(self, stage: str) -> None:
        """Do one stage and note that it is done."""
        began, self._tested = time.monotonic(), 0.0
        with self.engine.together(), preserved(self.engine.device):
            seed_all(derive(self.recipe.seed, "stage", stage))
            work: Callable[[], Done] = getattr(self, f"_{stage}")
            values, files = work()
            self.engine.accelerator.wait_for_everyone()
        notes = self.engine.notes[self._told :]
        self._told += len(notes)
        spent = time.monotonic() - began - self._tested
        self.folder.finish(stage, {"seconds": round(spent, 3), **values, "said": notes}, files)
        self.engine.accelerator.wait_for_everyone()

    # -------------------------------------------------------------------------------------------------------- training

    def _pretrain(self) -> Done:
        return self._train_dense("pretrain")

    def _train(self) -> Done:
        match self.prepared.row.acts:
            case "while training":
                return self._train_with_method()
            case "before training":
                return self._train_narrow("train")
            case _:
                return self._train_dense("train")

    def _finetune(self) -> Done:
        return self._train_narrow("finetune")

    def _longer(self) -> Done:
        """The dense network trained as long as the narrow one, to be measured beside it and not kept."""
        training = self.recipe.finetune
        assert training is not None
        dense = self._dense()
        fitted = self.engine.fit("longer", dense, training, teacher=self._dense() if training.distill.weight else None)
        return _described(fitted) | {"quality": {"longer": self._test(dense)}}, []

    def _train_dense(self, stage: str) -> Done:
        loaded = self.prepared.network()
        values = self._fit(stage, loaded.model)
        return values | {"quality": {"dense": self._test(loaded.model)}}, []

    def _train_with_method(self) -> Done:
        method = self._method(self._start())
        values = self._fit("train", method, method=method)
        quality: dict[str, float | None] = {}
        if self.recipe.pretrain is None and self.prepared.begins_trained:
            quality["dense"] = self._test(self.prepared.network().model)
        for name, mode in method.evaluation_modes().items():
            with mode:
                quality[name] = self._test(method)
        return values | {"quality": quality}, []

    def _train_narrow(self, stage: str) -> Done:
        """The cut network, learning from the dense one it was cut from if the recipe says so."""
        training: Training = getattr(self.recipe, stage)
        narrow = self._narrow(PRUNED)
        keep_zeros(narrow, self._sparse())
        teacher = self._dense() if training.distill.weight else None
        values = self._fit(stage, narrow, teacher=teacher)
        values["quality"] = {"finetuned": self._test(narrow)}
        return values, self._save_model(narrow.to("cpu"))

    def _fit(
        self, stage: str, module: nn.Module, *, method: Method | None = None, teacher: nn.Module | None = None
    ) -> Values:
        return _described(self.engine.fit(stage, module, getattr(self.recipe, stage), method=method, teacher=teacher))

    # --------------------------------------------------------------------------------------------------------- pruning

    def _prune(self) -> Done:
        method = self._method_after_training()
        quality: dict[str, float | None] = {}
        if "train" not in self.prepared.stages:  # the weights come from a file
            quality["dense"] = self._test(method.model)
        if self.prepared.row.collects:
            with self._telling():
                self._calibrate(method)
        repairs = self._repairs()
        self.engine.say("Cutting and verifying.", note=False)
        with self._telling():
            narrow = method.to("cpu").finish(repairs, self._calibration() if repairs else ())
        if method.result is None:
            raise RunError(f"The method {self.prepared.row.name} finished without a result: report this as a defect.")
        values = describe_cut(method, method.result)
        dense = self._plain(method)
        if self.folder.main:
            (self.folder.path / CHECKPOINTS).mkdir(exist_ok=True)
            method.result.whole_plan.save(self.folder.path / PLAN)
            runtime.save_weights(dense, self.folder.path / DENSE, {})
            runtime.save_weights(narrow, self.folder.path / PRUNED, {})
            values["dense_bytes"] = (self.folder.path / DENSE).stat().st_size
        files = [PLAN, DENSE, PRUNED]
        if not {"train", "finetune"} & set(self._after("prune")):
            files += self._save_model(narrow)
        quality["pruned"] = self._test(narrow)
        return values | {"quality": quality}, files

    def _telling(self) -> AbstractContextManager[None]:
        """Say how far work is that takes minutes; no note of the run."""
        return listening(lambda sentence: self.engine.say(sentence, note=False))

    def _after(self, stage: str) -> tuple[str, ...]:
        stages = self.prepared.stages
        return stages[stages.index(stage) + 1 :]

    def _method_after_training(self) -> Method:
        """The method on the network as training left it."""
        loaded = self._start()
        if self.prepared.row.acts == "while training":
            method = self._method(loaded)
            self._fit("train", method, method=method)  # which has ended: the method gets what it ended with
            return method.to("cpu")
        if self.prepared.row.acts == "after training" and self.recipe.train is not None:
            self._fit("train", loaded.model)
            loaded.model.to("cpu")
        return self._method(loaded)

    def _method(self, loaded: Named) -> Method:
        """The method on a network; what its table of layer times lacks, where that could not be kept, is shown."""
        try:
            return self.prepared.method(loaded, self.engine.progress.measured)
        finally:
            self.engine.progress.end_stage()

    def _plain(self, method: Method) -> nn.Module:
        """The dense network the narrow one is compared with, and learns from.

        A method that acts while training leaves weights that mean something with its masks only; the dense network is
        then the one it began with, if that was a trained one.
        """
        if self.prepared.row.acts == "while training" and self.prepared.begins_trained:
            return self._start().model
        return method.plain()

    def _calibrate(self, method: Method) -> None:
        method.to(self.engine.device)
        if method.searches():
            self.engine.say("Trying networks.", note=False)
            with trials(self.prepared, method, self.engine, self.folder.path) as answering:
                method.search(answering)
            self.engine.progress.end_stage()
            return
        images = self.recipe.data.calibration_images
        self.engine.say(f"Showing {min(images, len(self.data.train))} images to the method.", note=False)
        shown: Any = self._calibration()
        task = self.prepared.task
        if self.prepared.row.asks == "classes":
            shown = Classes(shown, task)
        method.collect(shown, task.loss)

    def _calibration(self) -> Calibration:
        return calibration(self.recipe, self.data.train, self.engine.device)

    def _repairs(self) -> list[Repair]:
        return repairs([each.model_dump() for each in self.recipe.repair])

    # --------------------------------------------------------------------------------------------------- what comes out

    def _export(self) -> Done:
        if not self.folder.main:
            return {}, []
        return write_exports(self.prepared, self._narrow(MODEL).eval(), self.folder.path, self.engine.say)

    def _latency(self) -> Done:
        config = self.recipe.latency
        if config is None or not self.folder.main:
            return {}, []
        self.engine.say("Timing dense and pruned network side by side.", note=False)
        images = single_images(self.data.test) if self.prepared.row.result == "per input" else None
        inputs, exported = self.prepared.network().inputs, self.folder.stages.get("export", {})

        def on(name: str, _: str, model: nn.Module) -> nn.Module:
            file = next((form for form, by in RUN_BY.items() if by == name), "")
            return placed(model, inputs, name, images=images, known=exported.get(file, {}).get("forms"))

        measured = runtime.measure(
            self._dense().eval(),
            self._narrow(MODEL).eval(),
            inputs,
            batch_size=config.batch_size,
            repeats=config.repeats,
            threads=config.threads,
            runtimes=config.names(onnx=self.recipe.export.onnx),
            images=images,
            placed=on,
        )
        write_json(self.folder.path / LATENCY, measured, what="The latencies")
        return {}, [LATENCY]

    # ---------------------------------------------------------------------------------------------------- the networks

    def _start(self) -> Named:
        """The network as the method finds it: new, from a file, or pretrained."""
        loaded = self.prepared.network()
        if self.recipe.pretrain is not None:
            self._fit("pretrain", loaded.model)
            loaded.model.to("cpu")
        return loaded

    def _dense(self) -> nn.Module:
        """The network as it was before the cut."""
        loaded = self.prepared.network()
        runtime.read_weights(loaded.model, self.folder.path / DENSE)
        return loaded.model

    def _narrow(self, weights: str) -> nn.Module:
        """The cut network with weights from a file of the folder."""
        loaded = self.prepared.network()
        plan = Plan.load(self.folder.path / PLAN)
        narrow = apply(loaded.model, loaded.inputs, plan, verify=False).model
        runtime.read_weights(narrow, self.folder.path / weights)
        return narrow

    def _save_model(self, narrow: nn.Module) -> list[str]:
        if not self.folder.main:
            return []
        loaded = self.prepared.network()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SecateurWarning)  # it is said below
            header = runtime.save_model(
                self.folder.path,
                narrow,
                reference=loaded.origin,
                arguments=dict(loaded.arguments),
                inputs=loaded.inputs,
                plan=Plan.load(self.folder.path / PLAN),
                metadata=self._metadata(),
            )
        if "not_compared" in header:
            self.engine.say(header["not_compared"])
        names = self._sparse()
        if not names:
            return [MODEL]
        size = save_sparse(narrow, self.folder.path / SPARSE, names)
        dense = (self.folder.path / MODEL).stat().st_size
        self.engine.say(f"{SPARSE} holds the same weights without their zeros, in {size} bytes instead of {dense}.")
        return [MODEL, SPARSE]

    def _sparse(self) -> list[str]:
        """Parameters in which the method has set single weights to zero, which stay zero."""
        return list(Plan.load(self.folder.path / PLAN).provenance.get("sparse", {}).get("names", ()))

    def _metadata(self) -> dict[str, Any]:
        return {
            "classes": self.data.classes,
            "class_names": list(self.data.class_names) if self.data.class_names else None,
            "normalisation": {"mean": list(self.data.mean), "std": list(self.data.std)},
            "data": self.data.name,
            "recipe_name": self.recipe.name,
        }

    def _test(self, module: nn.Module) -> float:
        began = time.monotonic()
        found = self.engine.evaluate(module, self.data.test).headline
        self._tested += time.monotonic() - began
        return found


def _described(fitted: Fitted) -> Values:
    """What a stage notes of its training."""
    return {
        "epochs": fitted.epochs,
        "seconds": round(fitted.seconds, 3),
        "selected": fitted.selected,
        "best_epoch": fitted.best_epoch,
    }


def file_names(folder: Path) -> list[str]:
    """The files of a run that others may want, those that are there."""
    run = ("recipe.yaml", "metrics.jsonl", SEARCH, PLAN, "verification.json", LATENCY)
    exports = [name for row in (*runtime.EXPORTERS.values(), *runtime.QUANTISERS.values()) for name in row.files]
    names = (*run, MODEL, *exports, SPARSE)
    return [name for name in names if (folder / name).is_file()]
