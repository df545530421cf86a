"""Every option of a run, in frozen models that are checked where they are made."""

from itertools import combinations
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from sam2_3dmed.volume.label_scheme import LabelScheme
from sam2_3dmed.volume.preprocess import Normalisation, Preprocessing
from sam2_3dmed.volume.slices import SlicingAxis

Size = Literal["nano", "tiny", "small", "base_plus", "large"]
Direction = Literal["forward", "backward", "both"]
Memory = Annotated[
    Literal["recent", "self_sorting", "none"], BeforeValidator(lambda value: "none" if value is None else value)
]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(ge=0)]
Volume = Annotated[float, Field(ge=0)]
Precision = Annotated[Literal["auto", "32", "bf16"], BeforeValidator(lambda value: "32" if value == 32 else value)]
"""`auto`: bf16 autocast on a GPU with bf16 and on a processor with AMX, else 32."""


class Frozen(BaseModel):
    """A section of a recipe or of a record: checked where it is made, and never changed."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ChannelPlan(Frozen):
    """How one channel's intensities reach [0, 1]: `fixed` bounds, or `percentiles` of each volume (reading 9)."""

    name: str
    normalisation: Literal["fixed", "percentiles"]
    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
        if self.normalisation == "percentiles" and not (self.low >= 0 and self.high <= 100):
            raise ValueError("percentiles lie between 0 and 100")
        return self


class Plan(Frozen):
    """What the data set dictates; `fingerprint` proposes it, a person may edit it, `predict` obeys it."""

    dataset: str
    channels: Annotated[tuple[ChannelPlan, ...], Field(min_length=1, max_length=3)]
    labels: Annotated[dict[int, str], Field(min_length=1)]
    regions: dict[int, Annotated[tuple[int, ...], Field(min_length=1)]] = {}
    ignore_label: Annotated[int, Field(ge=1, le=65535)] | None = None
    slicing_axis: SlicingAxis = "axial"
    slab_slices: Annotated[int, Field(ge=1, le=64)] = 6
    nsd_tolerance_mm: Positive = 2.0

    @model_validator(mode="after")
    def _labels_ascend(self) -> Self:
        values = list(self.labels)
        if (values != sorted(values) and not self.regions) or min(values) < 1 or max(values) > 65535:
            raise ValueError(f"label values must be ascending, between 1 and 65535, not {values}")
        if self.regions and set(self.regions) != set(values):
            raise ValueError(f"regions: needs the values of each class, {', '.join(map(str, values))}")
        in_files = self.scheme.file_values
        if self.regions and not ({*in_files} >= {*values} and 1 <= in_files[0] <= in_files[-1] <= 65535):
            raise ValueError("regions: values lie in 1 to 65535, and the value of a class must belong to a region")
        for first, later in combinations(values if self.regions else [], 2):
            if {*self.regions[first]} <= {*self.regions[later]}:
                names = f"{self.labels[first]} is painted before {self.labels[later]}"
                raise ValueError(f"labels: {names}, which covers it in every mask; put the smaller region later")
        if self.ignore_label in in_files:
            raise ValueError(f"ignore_label: {self.ignore_label} is the value of a class")
        return self

    @model_serializer(mode="wrap")
    def _without_unused(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without regions and ignore label a plan is written, and its checksum is, as before there were any."""
        content: dict[str, Any] = write(self)
        return {key: value for key, value in content.items() if key not in ("regions", "ignore_label") or value}

    def with_ignore_label(self) -> Self:
        """The same plan with an ignore label, for scans that nobody labelled; the highest value that is free."""
        if self.ignore_label is not None:
            return self
        free = next(value for value in range(65535, 0, -1) if value not in self.scheme.file_values)
        return self.model_copy(update={"ignore_label": free})

    @property
    def num_classes(self) -> int:
        """K, the number of foreground classes."""
        return len(self.labels)

    @property
    def label_values(self) -> tuple[int, ...]:
        """The value in masks of class 1..K; ascending, or with regions in the order in which they are painted."""
        return tuple(self.labels)

    @property
    def scheme(self) -> LabelScheme:
        """The classes with their regions and the value that is ignored."""
        return LabelScheme(self.labels, self.regions, self.ignore_label)

    @property
    def preprocessing(self) -> Preprocessing:
        """The part that training and prediction share."""
        return Preprocessing(
            slicing_axis=self.slicing_axis,
            normalisation=tuple(Normalisation(c.normalisation, c.low, c.high) for c in self.channels),
        )


class NetworkConfig(Frozen):
    """All that `build_network` needs besides the number of classes.

    A recipe may leave a field at `auto` or none. `run.build_model` fills these in from the weights, and the config.yaml
    of a run holds the complete section. `srpp` to `boundary_fusion` are the paper's ablations.
    """

    encoder: str = "hiera"
    """`hiera`: SAM2's. `conv`: a ConvNeXt, only from scratch or from a run that has it."""
    size: Literal["auto", Size] = "auto"
    """`auto`: the size of the weights; from scratch tiny on a GPU and nano on a CPU."""
    image_size: Annotated[int, Field(ge=64, le=1024, multiple_of=32)] | None = None
    """H = W of the slices that the network sees, in pixels. None: 512, and 96 for nano."""
    channels: Annotated[int, Field(ge=64, le=4096, multiple_of=64)] | None = None
    """C, the width of the feature pyramid, the decoders and the memory. None: the width of the weights or of the
    size."""
    srpp: bool = True
    """Slice relative position prediction (paper 3.2)."""
    share_context: bool = True
    """SRPP's context reaches both memory attentions (reading 1). False is the literal reading."""
    srpp_memory: bool = False
    """Table 9: in SRPP, a slice attends only to itself and the slices before it."""
    boundary: bool = True
    """Boundary detection (paper 3.3)."""
    boundary_fusion: bool = True
    """BD-Fusion: the cross-attention of Eqs. 3 and 4."""
    fusion_residual: bool = False
    """Z1_bd keeps Z_bd beside the cross-attention (reading 3). The paper's Eq. 3 has no residual."""
    slice_mixing: bool = False
    """Neighbouring slices exchange features through 3D convolutions, at each resolution of the decoders."""
    memory: Memory = "recent"
    """`recent`: SAM2's bank of the first and the latest slices. `self_sorting`: MedSAM-2's bank of 16 confident and
    diverse slices. `none`: slices have no memories, and all slices of a slab are decoded at once."""
    memory_pooling: Literal[1, 2] = 1
    """2: a slice attends to the means of 2 x 2 places of a memory, which are a quarter of the tokens (EfficientTAM). It
    has no weights of its own. 1: to every place, as SAM2."""
    box_every: Annotated[int, Field(ge=0)] = 0
    """Every so many slices, the network gets a box around each class, taken from the reference: MedSAM-2 as published.
    0: no boxes."""
    promptable: bool = False
    """The network takes points, boxes and masks as prompts, as SAM2 does, for its one class: what `pretrain` trains."""
    prompt_maps: bool = False
    """Prompts are also drawn as maps, which are added to the features of the decoder. A network from scratch learns
    what a prompt means from these, long before it does from tokens."""
    pointer_time: bool | None = None
    """Object pointers carry their distance in slices. None: as the weights were trained (SAM 2.1: true, SAM 2.0:
    false); true from scratch."""
    no_memory_token: bool | None = None
    """A slice without memories attends to a learnt token. None: as the weights were trained (SAM2: false); true from
    scratch."""


class LossConfig(Frozen):
    """The training loss, a weighted sum of terms. Eq. 6: L = L_seg + lambda1 * L_srpp + lambda2 * L_bd."""

    terms: Annotated[dict[str, Annotated[float, Field(ge=0)]], Field(min_length=1)] = {
        "bce": 1.0,
        "relative_position": 0.01,
        "boundary": 0.1,
    }
    """The weight of each term by name: bce, dice, focal, focal_tversky, relative_position, boundary, consistency."""

    @property
    def has_teacher(self) -> bool:
        """Whether a moving average of the weights teaches the network."""
        return self.terms.get("consistency", 0) > 0

    boundary_normalise: Literal["weight_sum", "mean", "sum"] = "weight_sum"
    """What the weighted sum of Eq. 5 is divided by: its weights, the number of pixels, or 1 (reading 8)."""


class AugmentationConfig(Frozen):
    """Appendix B's augmentation: one draw for all slices of a slab. Angles are in degrees."""

    horizontal_flip: Fraction = 0.5
    """Chance of a horizontal flip."""
    affine: Fraction = 1.0
    """Chance of a rotation with shear and zoom."""
    rotation_degrees: Annotated[float, Field(ge=0, le=180)] = 25.0
    """Largest rotation in either direction."""
    shear_degrees: Annotated[float, Field(ge=0, le=60)] = 20.0
    """Largest shear in either direction."""
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """In-plane zoom, uniform in 1 - scale to 1 + scale. The paper has none."""
    elastic: Annotated[float, Field(ge=0, le=0.2)] = 0.0
    """Smooth in-plane deformation, the same for all slices of a slab. Its strength is uniform in 0 to this, the
    standard deviation of the displacement as a share of the width. The paper has none."""
    noise: Fraction = 0.5
    """Chance of Gaussian noise."""
    noise_std: Annotated[float, Field(ge=0)] = 0.1
    """Largest standard deviation of the noise, for intensities in [0, 1]."""
    blur: Fraction = 0.5
    """Chance of a Gaussian blur."""
    blur_sigma: tuple[Positive, Positive] = (0.1, 2.0)
    """Lowest and highest sigma of the blur, in pixels."""
    mosaic: Fraction = 0.15
    """Chance of RandomMosaic: the slab is tiled 2 x 2, and every tile is labelled (reading 12)."""
    intensity: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Contrast factor and gamma exponent, uniform in 1 - intensity to 1 + intensity. The paper has none."""
    reverse: Fraction = 0.5
    """Chance that a slab is fed in reversed order (reading 5)."""

    @field_validator("blur_sigma")
    @classmethod
    def _ordered(cls, sigma: tuple[float, float]) -> tuple[float, float]:
        if sigma[0] > sigma[1]:
            raise ValueError(f"the lowest ({sigma[0]:g}) must not exceed the highest ({sigma[1]:g})")
        return sigma


class TrainingConfig(Frozen):
    """Optimiser, schedule, batches and length of a run. The defaults are appendix B's."""

    epochs: Annotated[int, Field(ge=1)] = 500
    """Epochs of the whole run; `minutes` replaces them."""
    single_slice_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the epochs, rounded down, that come first and make every slice a slab of its own. There is no memory
    then, and all slices of a batch, drawn one by one, pass together. SAM2, too, learnt images before videos."""
    slab_rate: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor of the learning rate in the epochs of slabs that follow."""
    samples_per_epoch: Annotated[int, Field(ge=1)] | None = None
    """Slabs in an epoch. None: one of every training case (reading 14)."""
    batch_size: Annotated[int, Field(ge=1)] = 4
    """Slabs in a step, over all processes and passes."""
    grad_accum_steps: Annotated[int, Field(ge=1)] = 1
    """Passes through the network in which a process takes its share of a batch."""
    activation_checkpointing: bool = False
    """Keep little of each slice for the gradients and compute the rest again: less memory, more time, the same
    gradients."""
    encoder: Literal["auto", "frozen", "train", "lora", "last_stage"] = "auto"
    """How the image encoder learns: not at all, as a whole, through low-rank adapters on its attention, or in its last
    stage only. `auto`: frozen with SAM2's weights, `train` from scratch (reading 15)."""
    lora_rank: Annotated[int, Field(ge=1)] = 8
    """Rank of the matrix that each adapter adds to a weight."""
    encoder_slices: Annotated[int, Field(ge=1)] | None = None
    """Slices that are encoded together; also decoded together where none has memories to read. None: all of a pass."""
    optimizer: Literal["adamw", "muon", "sgd"] = "adamw"
    """`muon`: Muon for the weights of linear layers and convolutions, AdamW for the rest. `sgd`: Nesterov's, with
    momentum 0.99."""
    learning_rate: Positive = 5e-5
    """Highest learning rate of the schedule."""
    encoder_rate: Positive = 1.0
    """Factor of the learning rate for the encoder's weights that train."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Further factor for each layer of the encoder, counted from the feature pyramid down to the pixels."""
    final_learning_rate_fraction: Fraction = 0.1
    """Share of the learning rate at which the cosine ends."""
    warmup_fraction: Fraction = 0.0
    """Share of all steps over which the rate rises linearly from zero."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Weight decay of the optimiser."""
    clip_gradient_norm: Positive | None = 1.0
    """Largest norm of all gradients; larger ones are scaled down. None: no limit."""
    precision: Precision = "auto"
    """`auto`: bf16 autocast on a GPU with bf16 and on a processor with AMX, else 32 bit."""
    foreground_fraction: Fraction = 0.5
    """Share of the draws that are centred on foreground (reading 6)."""
    unlabelled_fraction: Fraction = 0.0
    """Share of the slabs that come from scans without labels, which take part if it is above 0."""
    validate_every: Annotated[int, Field(ge=1)] = 5
    """Epochs between validations of whole volumes."""
    patience: Annotated[int, Field(ge=1)] | None = 20
    """Validations without a better mean Dice before training stops. None: never."""
    cooldown: Fraction = 0.0
    """Share of the epochs so far over which the rate then falls to its final value before training stops. 0: stop at
    once."""
    minutes: Positive | None = None
    """Train as many epochs as fit into this time, measured at the start. None: `epochs`."""
    keep_checkpoints: Annotated[int, Field(ge=1)] = 2
    """Number of the latest checkpoints that are kept, besides the best weights."""
    checkpoint_minutes: Positive | None = 10.0
    """Time between checkpoints within an epoch. None: only at the end of an epoch."""
    loggers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ("tensorboard",)
    """Where curves go besides curves.csv."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of a moving average of the weights, which is then validated and kept. None: no average."""
    seed: Seed = 0
    """Seed of everything that is drawn in training."""
    workers: Annotated[int, Field(ge=0)] | None = None
    """Processes that prepare slabs. None: one less than the processors, at most 8."""

    @property
    def single_slice_epochs(self) -> int:
        """How many epochs come first that make every slice a slab of its own."""
        return int(self.single_slice_fraction * self.epochs)


class FeatureCacheConfig(Frozen):
    """Features of a frozen encoder, computed once for each augmented view (docs/how_to/feature_cache.md)."""

    views: Annotated[int, Field(ge=0)] = 0
    """Augmented views of each case at a time. 0: no cache, and every slab is augmented anew."""
    refresh: Annotated[int, Field(ge=1)] | None = None
    """Epochs after which another view takes the place of one. None: never."""
    dtype: Literal["bf16", "fp16", "fp32"] = "bf16"
    """Type in which features are stored."""
    budget_gb: Annotated[float, Field(ge=0)] = 4.0
    """GB of features that a process keeps in memory; the others go to files."""
    folder: str | None = None
    """Folder of the files; runs with the same folder share them. None: a folder in the run, until training has
    ended."""


class SplitConfig(Frozen):
    """The cases that are held out (reading 13)."""

    seed: Seed = 0
    """Seed of the split."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the labelled cases in the test set."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the other cases in the validation set."""
    training_cases: Annotated[int, Field(ge=1)] | Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """At most so many cases to train on, or their names, to see what few labels are worth. The others take no part, or
    they are taken without their labels (`training.unlabelled_fraction`). None: all."""


class InferenceConfig(Frozen):
    """How a volume passes through the network, and the post-processing of its mask."""

    mode: Literal["slabs", "stream"] = "slabs"
    """Overlapping slabs, or one stream through the volume (reading 6)."""
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of a slab that the next one repeats. A stream has no overlap."""
    direction: Direction = "both"
    """`both` averages the logits of the two directions."""
    batch_size: Annotated[int, Field(ge=1)] | None = None
    """Slabs at once; none: from free memory. A stream takes one slice at a time."""
    flips: bool = False
    """Each slice also passes mirrored along W, at twice the time; the logits are averaged."""
    shifts: bool = False
    """Each slice passes four times, shifted by half a logit towards each corner; the logits are averaged. With flips,
    two of the four are mirrored at no extra cost."""
    precision: Precision = "auto"
    """`auto`: bf16 autocast on a GPU with bf16 and on a processor with AMX, else 32 bit."""
    compile: bool = False
    """Compile the network first. This takes minutes, which pay off over hundreds of slices."""
    largest_component: bool | tuple[str, ...] = False
    """Keep only the largest component, of all classes or of the named ones."""
    min_volume_ml: Volume | dict[str, Volume] = 0.0
    """Remove smaller components, of all classes or by name."""
    fill_holes: bool | tuple[str, ...] = False
    """Fill the background that a class encloses, for all classes or for the named ones."""


class RunConfig(Frozen):
    """A recipe: everything that a run is given besides its data and its weights."""

    model: NetworkConfig = NetworkConfig()
    loss: LossConfig = LossConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    training: TrainingConfig = TrainingConfig()
    feature_cache: FeatureCacheConfig = FeatureCacheConfig()
    split: SplitConfig = SplitConfig()
    inference: InferenceConfig = InferenceConfig()
    slab_slices: Annotated[int, Field(ge=1, le=64)] | None = None
    """D, the number of slices in a slab. None: that of the plan."""
