"""Tokenizer and prior together as a diffusers pipeline: class labels in, images out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from numbers import Integral, Number
from operator import index
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from huggingface_hub import HfApi
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.nn import functional as F

import stage2_prior.priors  # noqa: F401  (diffusers loads the parts of a pipeline from modules that are there already)
from pipeline import editing
from pipeline.core.data.labels import find_classes
from pipeline.core.errors import UserError
from pipeline.core.files import write_text
from pipeline.model_card import CODE, find_results, model_card
from pipeline.pixels import GREY, Holes, Pictures, as_output, from_masks, from_pictures, to_uint8
from pipeline.step_end import CALLBACK_TENSORS, StepEnd, StepEndCallback
from stage1_tokenizer.tokenizer import Tokenizer
from stage2_prior.drawing import require_seed
from stage2_prior.prior import Mixture, Prior
from stage2_prior.sampling import UNKNOWN, make_options, require_options

PIXEL_TYPES = ("pil", "np", "pt")
OUTPUT_TYPES = (*PIXEL_TYPES, "latent")
Label = int | str | Mixture
Generators = torch.Generator | Sequence[torch.Generator]


@dataclasses.dataclass(frozen=True)
class Request:
    """A call once its arguments are understood: what the functions of pipeline/editing.py want to know."""

    class_labels: list[int | Mixture]
    seeds: list[int]
    sampling: Any
    progress: StepEnd


class ImageGenerator(DiffusionPipeline):
    """Class-conditional images. `class_names`, `class_ids` and `groups` name the classes, in their order.

    sampling: options of the prior's sampler that hold where a call does not say otherwise.
    Raises UserError where the prior's tokens are not the tokenizer's, or its sampler has no such options.
    """

    model_cpu_offload_seq = "prior->tokenizer"
    _callback_tensor_inputs: ClassVar[list[str]] = CALLBACK_TENSORS
    tokenizer: Tokenizer
    prior: Prior

    def __init__(
        self,
        tokenizer: Tokenizer,
        prior: Prior,
        class_names: list[str] | None = None,
        class_ids: list[str] | None = None,
        groups: list[str] | None = None,
        sampling: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if tokenizer.spec != prior.spec:
            raise UserError(f"the tokenizer makes {tokenizer.spec}, the prior knows {prior.spec}; use two that belong together")
        self.register_modules(tokenizer=tokenizer, prior=prior)
        self.register_to_config(class_names=class_names, class_ids=class_ids, groups=groups, sampling=sampling)
        require_options("sampling", prior.options_type, sampling)
        self._interrupt = False

    @property
    def interrupt(self) -> bool:
        """Whether a callback has asked the call that runs to stop, by setting `_interrupt`."""
        return self._interrupt

    def classes(self, query: int | str) -> list[int]:
        """The labels of a number, a name or a part of a name; UserError with the nearest names where there is none."""
        numbers = [str(label) for label in range(self.prior.config["num_classes"])]
        names = self.config["class_names"] or numbers
        return find_classes(query, names, self.config["class_ids"] or names, self.config["groups"] or names)

    def options(self, brought: bool = True, **changes: Any) -> Any:
        """The options of sampling that the prior brings, with changes; None leaves an option as it is.

        brought: False starts from the sampler's defaults instead. Raises UserError for an option that there is not, or that
        does nothing beside the others.
        """
        given = {name: value for name, value in changes.items() if value is not None}
        own = self.config["sampling"] if brought else None
        options = make_options(self.prior.options_type, {**(own or {}), **given})
        options.require_used(given)
        return options

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Label | Sequence[Label] | Int[Tensor, " b"],
        seeds: Sequence[int] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: Generators | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepEndCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("tokens",),
        **options: Any,
    ) -> ImagePipelineOutput | tuple[Any]:
        """One image per label and seed; the same seed gives the same image in any batch.

        class_labels: a number, a name that one class has, or a Mixture of two classes; one label alone goes for all seeds.
        seeds: default 0, 1, …; or drawn from `generator`, one for all images or one each.
        num_inference_steps, guidance_scale: the sampler's `steps` and `guidance_scale`; its other options go by their names.
        What is not given is as the prior brings it (`options`).
        output_type: "pil", "np" (float in [0, 1] "b y x 3"), "pt" (that as "b 3 y x") or "latent" (tokens "b t d").
        callback_on_step_end: called as diffusers does, (pipeline, step, timestep, tensors) -> tensors; timestep counts the
        steps to come (in raster order the tokens), the tensors are "tokens", -1 where still unknown: those known may be
        changed (of an autoregressive prior in another order the newest only, the others have been read). Setting
        `pipeline._interrupt` ends the call: unknown cells are grey.
        """

        def generate(request: Request) -> Tensor:
            prior = editing.onloaded(self.prior)
            tokens = prior.sample(request.class_labels, request.sampling, request.seeds, progress=request.progress).tokens
            return tokens if output_type == "latent" else self.decode(tokens)

        return self._answer(
            generate,
            OUTPUT_TYPES,
            class_labels,
            seeds,
            num_inference_steps,
            guidance_scale,
            generator,
            output_type,
            return_dict,
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
            **options,
        )

    @torch.no_grad()
    def inpaint(
        self, images: Pictures, masks: Holes, class_labels: Label | Sequence[Label], *args: Any, grow: int = 1, **kwargs: Any
    ) -> ImagePipelineOutput | tuple[Any]:
        """Fill the masked pixels of each picture (editing.inpaint); from `class_labels` on, the arguments of a call.

        One picture, or one mask, alone goes for all seeds. masks: white pictures, or a tensor of booleans, or of bytes that are
        not 0. What comes back are pixels, of any edit: no output_type "latent".
        """
        if isinstance(masks, Tensor) and masks.dtype == torch.uint8:
            masks = masks.bool()
        given, holes = from_pictures(images), from_masks(masks)

        def fill(request: Request) -> Tensor:
            rows = len(request.seeds)
            return editing.inpaint(self, _each(given, rows), _each(holes, rows), **vars(request), grow=grow)

        return self._answer(fill, PIXEL_TYPES, class_labels, *args, **kwargs)

    @torch.no_grad()
    def vary(
        self, images: Pictures, strength: float, class_labels: Label | Sequence[Label], *args: Any, **kwargs: Any
    ) -> ImagePipelineOutput | tuple[Any]:
        """Sample a share of each picture's tokens again (editing.vary); from `class_labels` on, the arguments of a call."""
        given = from_pictures(images)

        def change(request: Request) -> Tensor:
            return editing.vary(self, _each(given, len(request.seeds)), strength, **vars(request))

        return self._answer(change, PIXEL_TYPES, class_labels, *args, **kwargs)

    @torch.no_grad()
    def outpaint(
        self,
        images: Pictures,
        margins: tuple[int, int, int, int],
        class_labels: Label | Sequence[Label],
        *args: Any,
        **kwargs: Any,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Extend pictures by (top, bottom, left, right) pixels (editing.outpaint); then the arguments of a call."""
        given = from_pictures(images)

        def extend(request: Request) -> Tensor:
            return editing.outpaint(self, _each(given, len(request.seeds)), margins, **vars(request))

        return self._answer(extend, PIXEL_TYPES, class_labels, *args, **kwargs)

    def interpolate(
        self,
        first: int | str,
        second: int | str,
        images: int,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        **kwargs: Any,
    ) -> ImagePipelineOutput | tuple[Any]:
        """As many images of one seed, in equal steps from one class to another; the ends are images of the classes.

        seed: default 0, or drawn from `generator`. The other arguments are those of a call, but for `seeds`.
        """
        if "seeds" in kwargs or (generator is not None and (seed is not None or not isinstance(generator, torch.Generator))):
            raise UserError("seeds and generator: all images of an interpolation have one seed; give seed=, or one generator")
        if not isinstance(images, Integral) or images < 0:
            raise UserError(f"images: {images}; give a whole number, at least 0")
        one = (seed or 0) if generator is None else _draw(generator, 1)[0]
        weights = torch.linspace(0, 1, images, dtype=torch.float64).tolist()
        return self([Mixture(first, second, weight) for weight in weights], [one] * images, **kwargs)

    def batches(
        self, labels: Sequence[int | Mixture], seeds: Sequence[int], sampling: Any, batch_size: int = 128
    ) -> Iterator[UInt8[Tensor, "b 3 y x"]]:
        """Images of many labels and seeds as uint8 batches: what evaluation consumes."""
        for start in range(0, len(labels), batch_size):
            rows = slice(start, start + batch_size)
            yield self.decode(editing.onloaded(self.prior).sample(labels[rows], sampling, seeds[rows]).tokens)

    @torch.no_grad()
    def decode(self, tokens: Int[Tensor, "b t d"]) -> UInt8[Tensor, "b 3 y x"]:
        """Pixels of tokens, rounded to the nearest of 256 levels; grey over the cells whose tokens are UNKNOWN."""
        if not len(tokens):  # PixelShuffle gives no image another shape
            return torch.empty(0, 3, *self.tokenizer.spec.image_size, dtype=torch.uint8, device=tokens.device)
        known = (tokens != UNKNOWN).all(-1)
        images = to_uint8(editing.onloaded(self.tokenizer).decode(tokens.clamp_min(0)))
        if known.all():
            return images
        h, w = self.tokenizer.spec.grid
        cells = F.interpolate(known[:, -h * w :].view(-1, 1, h, w).float(), images.shape[-2:], mode="nearest")
        return torch.where(cells > 0, images, GREY)

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        save_directory: str | Path,
        safe_serialization: bool = True,
        *,
        name: str | None = None,
        results: str | Path | None = None,
    ) -> None:
        """Write a folder that diffusers loads by itself: safetensors, JSON, a model card and the code `pipeline.py`.

        name: what the card calls it, default the folder's. results: a folder of `eval.run`; what it measured on these very
        weights goes into the card. Raises UserError where it measured others only, or for anything but safetensors.
        """
        if not safe_serialization:
            raise UserError("safe_serialization: False; this pipeline is saved as safetensors only")
        super().save_pretrained(save_directory)
        folder = Path(save_directory)
        measured = [] if results is None else find_results(Path(results), folder)
        write_text(folder / "pipeline.py", CODE)
        title = (name or folder.resolve().name).encode(errors="replace").decode()  # a folder's name need not be text
        write_text(folder / "README.md", model_card(title, self.tokenizer, self.prior, self.config["class_names"], measured))

    def push_to_hub(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        repo_id: str,
        *,
        results: str | Path | None = None,
        private: bool | None = None,
        token: str | None = None,
        commit_message: str | None = None,
    ) -> str:
        """Save and upload, the model card too (diffusers' own method would put an empty one over it); gives the address.

        NOT RUN: tested up to the upload.
        """
        hub = HfApi(token=token)
        repository = hub.create_repo(repo_id, private=private, exist_ok=True).repo_id
        with TemporaryDirectory() as aside:
            self.save_pretrained(aside, name=repository, results=results)
            return hub.upload_folder(repo_id=repository, folder_path=aside, commit_message=commit_message).commit_url

    def _answer(
        self,
        make: Callable[[Request], Tensor],
        types: Sequence[str],
        class_labels: Label | Sequence[Label] | Int[Tensor, " b"],
        seeds: Sequence[int] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: Generators | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepEndCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("tokens",),
        **options: Any,
    ) -> ImagePipelineOutput | tuple[Any]:
        """What every kind of call does the same way: understand the arguments, show the progress, hand out the images."""
        if output_type not in types:  # said before the work, not after it
            raise UserError(f"output_type: {output_type}; choose one of {', '.join(types)}")
        sampling = self.options(steps=num_inference_steps, guidance_scale=guidance_scale, **options)
        labels, own_seeds = self._labels_and_seeds(class_labels, seeds, generator)
        self._interrupt = False
        with StepEnd(self, callback_on_step_end, callback_on_step_end_tensor_inputs) as progress:
            made = make(Request(labels, own_seeds, sampling, progress))
        self.maybe_free_model_hooks()
        images: Any = as_output(made, output_type) if made.dtype == torch.uint8 else made
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _labels_and_seeds(
        self, labels: Any, seeds: Sequence[int] | None, generators: Generators | None
    ) -> tuple[list[int | Mixture], list[int]]:
        if labels is None:
            raise UserError("class_labels: None; give one for every image, and guidance_scale=0 for images of no class")
        alone = isinstance(labels, (str, Number, Mixture)) or (isinstance(labels, Tensor) and labels.ndim == 0)
        listed: Any = [labels] if alone else _listed("class_labels", labels)
        found = [self._label(label) for label in listed]
        if seeds is not None and generators is not None:
            raise UserError("seeds and generator: give one of them; seeds are drawn from a generator")
        if seeds is not None:
            drawn = [require_seed(seed) for seed in _listed("seeds", seeds)]
        elif generators is None:
            drawn = list(range(len(found)))
        elif isinstance(generators, torch.Generator):
            drawn = _draw(generators, len(found))
        else:
            drawn = [seed for generator in _listed("generator", generators) for seed in _draw(generator, 1)]
        return (found * len(drawn) if alone else found), drawn

    def _label(self, label: Label) -> int | Mixture:
        """The number of a label, or of both ends of a mixture; UserError where a name means several classes."""
        if isinstance(label, Mixture):
            first, second = (self._number(end) for end in label[:2])
            return Mixture(first, second, label.weight)
        return self._number(label)

    def _number(self, label: int | str) -> int:
        if not isinstance(label, str):
            try:
                return index(label)  # the prior knows which there are
            except TypeError:
                raise UserError(f"class_labels: {label!r:.100}; give the number of a class, a name or a Mixture") from None
        found = self.classes(label)
        if len(found) > 1:
            raise UserError(
                f"class_labels: {label!r} means {len(found)} classes; give numbers such as {found[0]}, a whole name, or "
                f"class_labels=generator.classes({label!r})"
            )
        return found[0]


def _draw(generator: torch.Generator, count: int) -> list[int]:
    return torch.randint(2**63 - 1, (count,), generator=generator, device=generator.device).tolist()


def _listed(name: str, given: Any) -> list[Any]:
    """UserError where it is one thing, and one for every image is wanted."""
    try:
        return given.tolist() if isinstance(given, Tensor) and given.ndim else list(given)
    except TypeError:
        raise UserError(f"{name}: {given!r:.100}; give a list, one for every image") from None


def _each(given: Tensor, rows: int) -> Tensor:
    """One of a kind alone goes for all rows."""
    return given.expand(rows, *given.shape[1:]) if len(given) == 1 else given
