"""Write a config that fine-tunes on a folder of photographs by Big Transfer's rule."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median_low

import yaml
from PIL import Image

from lightning_vision.classification.bit import HyperRule, hyperrule
from lightning_vision.commands._arguments import Parser
from lightning_vision.commands._folders import keep_existing, prepare_folder
from lightning_vision.datamodules.common._sets import FileImages
from lightning_vision.datamodules.image_folder import ImageFolder
from lightning_vision.images import BadImageError

SAMPLED = 200  # files whose size is read

CONFIG = """\
model:
  class_path: ImageClassifier
  init_args:
    backbone: resnetv2_50x1_bit.goog_in21k  # BiT-M, R50x1: ImageNet-21k, group norm, standardised convolutions
    pretrained: true
    zero_head: true  # section 3.3
    no_decay_norm_bias: false
    optimizer:
      class_path: torch.optim.SGD
      init_args:
        lr: {lr}  # at {batch} images a step; of B images: {lr} x B / {batch}
        momentum: {momentum}
        weight_decay: 0.0  # none when fine-tuning
data:
  class_path: ImageFolder
  init_args:
{root}    batch_size: {part}
    num_workers: 4
    resize: squash  # to a square, whatever the aspect ratio
    train_size: {resize}  # then a random crop of image_size; {resolution}
    image_size: {crop}
    augment: light  # random crop and mirror, nothing else
    mean: [0.5, 0.5, 0.5]  # of these weights
    std: [0.5, 0.5, 0.5]
callbacks:
{mixup}  schedule:
    class_path: WarmUpSteps
    init_args:
      milestones: {decays}  # of {steps} optimizer steps; {size}
      gamma: 0.1
      warmup: {warmup}
  best:
    class_path: ModelCheckpoint
    init_args:
      filename: best
      monitor: val/acc
      mode: max
  last:
    class_path: ModelCheckpoint
    init_args:
      # Epochs of small data are short: by steps, and at the end, under the name that `--ckpt_path last` finds.
      save_top_k: 0
      save_last: true
      every_n_train_steps: {every}
      enable_version_counter: false
  exact_resume:
    class_path: ExactResume
  graceful_interrupt:
    class_path: GracefulInterrupt
trainer:
  max_epochs: -1
  max_steps: {steps}
  accumulate_grad_batches: {parts}  # {batch} = {parts} x {part}; without batch statistics nothing else changes
  check_val_every_n_epoch: null
  val_check_interval: {check}  # batches; ten times in the whole training
  log_every_n_steps: 10
  default_root_dir: runs/bit
  logger:
    - class_path: CSVLogger
      init_args:
        save_dir: .
        name: ""
    - class_path: TensorBoardLogger
      init_args:
        save_dir: .
        name: ""
"""

MIXUP = """\
  mixup:
    class_path: MixUp
    init_args:
      alpha: {alpha}  # for medium and large data
"""


def main(argv: list[str]) -> str:
    """Count the folder's images, apply the rule and write the config that `fit --config` runs.

    Args:
        argv: `--root FOLDER`, and optionally `--output FILE`, `--batch_size N` and `--overwrite`.

    Returns:
        The path of the written file.

    Raises:
        FileNotFoundError: there is no such folder.
        FileExistsError: the output exists and `--overwrite` is missing.
        ValueError: the folder has no class folders with images, an image is damaged, the batch size is no divisor of
            the rule's, or the output cannot be written.
    """
    parser = Parser("lightning_vision hyperrule", description=__doc__)
    parser.add_argument("--root", required=True, help="class folders of photographs, as ImageFolder reads them")
    parser.add_argument("--output", default="bit.yaml", help="file to write, bit.yaml if not given")
    parser.add_argument("--batch_size", type=int, default=32, help="images in memory at once, a divisor of 512")
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    options = parser.parse_args(argv)
    output = Path(options.output)
    if output.is_dir():
        raise ValueError(f"--output {output} is a folder; name a file in it")
    keep_existing([output], options.overwrite)
    prepare_folder(output.parent, "choose another --output")
    data = ImageFolder(options.root)
    images = sum(data.class_counts["train"].values())
    assert isinstance(data.train_set, FileImages)
    height, width = typical_size(data.train_set.paths)
    rule = hyperrule(images, (height, width))
    about = (
        f"# Fine-tune on {images} photographs of about {height} x {width} pixels by BiT-HyperRule, arXiv:1912.11370.\n"
    )
    text = about + config(rule, options.batch_size, str(Path(options.root).absolute()))
    output.write_text(text, encoding="utf-8")
    mixup = f"MixUp {rule.mixup_alpha}" if rule.mixup_alpha else "no MixUp"
    print(f"{images} training images of about {height} x {width} pixels: {rule.steps} steps at {rule.crop}, {mixup}")
    print(f"written: {output}; train with `lightning_vision fit --config {output}`")
    return str(output)


def config(rule: HyperRule, batch_size: int, root: str | None = None) -> str:
    """A run's config by `rule`, which fits `batch_size` images into memory; without `root` the data is left open.

    Raises:
        ValueError: `batch_size` is no divisor of the rule's.
    """
    if batch_size < 1 or rule.batch_size % batch_size:
        raise ValueError(f"--batch_size {batch_size} is no divisor of the rule's {rule.batch_size}; try 16, 32 or 64")
    parts = rule.batch_size // batch_size
    small, medium = rule.steps == 500, rule.steps == 10_000
    return CONFIG.format(
        lr=rule.lr,
        momentum=rule.momentum,
        batch=rule.batch_size,
        part=batch_size,
        parts=parts,
        root="" if root is None else f"    root: {yaml.safe_dump(root, width=10_000).partition(chr(10))[0]}\n",
        resize=rule.resize,
        crop=rule.crop,
        resolution="images below 96 x 96 pixels" if rule.crop == 128 else "images of 96 x 96 pixels or more",
        mixup=MIXUP.format(alpha=rule.mixup_alpha) if rule.mixup_alpha else "",
        decays=list(rule.decays),
        steps=rule.steps,
        warmup=rule.warmup,
        size="fewer than 20,000 images" if small else "20,000 to 500,000" if medium else "500,000 images or more",
        every=rule.steps // 10,
        check=rule.steps // 10 * parts,
    )


def typical_size(paths: Sequence[str]) -> tuple[int, int]:
    """Median height and width of images in pixels, read from the headers of at most `SAMPLED` of them.

    Raises:
        BadImageError: a file has no header of an image.
    """
    sizes = []
    for path in paths[:: -(-len(paths) // SAMPLED)]:
        try:
            with Image.open(path) as image:
                sizes.append(image.size)
        except OSError as error:
            raise BadImageError(f"cannot read the size of the image {path}; repair or remove it") from error
    widths, heights = zip(*sizes, strict=True)
    return median_low(heights), median_low(widths)
