"""Cascade R-CNN: a row of box heads, each trained on what the one before made of the proposals."""

from collections.abc import Sequence

from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

from .cascade_criterion import CascadeCriterion
from .cascade_detections import CascadeDetections
from .cascade_heads import CascadeHead, CascadeHeads
from .network import DetectionNetwork, TorchvisionDetector
from .pyramid import Levels
from .settings import DetectorSettings
from .two_stage import CELLS, check_sampling, in_full_precision, proposal_settings

__all__ = ["cascade_rcnn"]


def cascade_rcnn(
    levels: Levels,
    settings: DetectorSettings,
    iou_thresholds: Sequence[float] = (0.5, 0.6, 0.7),
    stage_weights: Sequence[float] = (1.0, 0.5, 0.25),
    coder_weights: Sequence[Sequence[float]] = (
        (10.0, 10.0, 5.0, 5.0),
        (20.0, 20.0, 10.0, 10.0),
        (30.0, 30.0, 15.0, 15.0),
    ),
    proposals: int = 1000,
    boxes_per_image: int = 512,
    positive_fraction: float = 0.25,
) -> DetectionNetwork:
    """Cascade R-CNN: box heads in a row, each of which asks for more overlap and refines the boxes of the last.

    Proposals come as in `faster_rcnn`. While training, each stage takes what overlaps an object by its own threshold
    as positive, samples anew, and proposes what its head made of these boxes to the next stage; the objects themselves
    are candidates of each stage. A head moves boxes alike for all classes. In use, boxes are the last stage's and
    scores the mean of the stages'. The proposals to learn from are drawn from torch's global stream, as in all of
    torchvision's detectors: `seed_everything` and `ExactResume` say which; `CascadeCriterion` takes other draws.

    Args:
        levels: Maps of the backbone; strides beyond its coarsest are pooled, and looked at for proposals alone.
        settings: What all architectures are told.
        iou_thresholds: Of each stage, the intersection over union from which on a box shows its object; ascending,
            above 0 and at most 1. A list of one number makes a cascade of one stage, which is Faster R-CNN with one
            box for all classes.
        stage_weights: Of each stage, the factor on its losses, 0 or more; the default is the authors' code's.
        coder_weights: Of each stage, what a move across, down, in log width and in log height is multiplied by, so
            that the ever smaller moves look alike to the heads; above 0.
        proposals: Boxes that are proposed to the first stage in an image, at most; twice as many while training.
        boxes_per_image: Proposals that each stage learns from, an image, at most.
        positive_fraction: How many of them show an object, at most, 0..1.

    Raises:
        ValueError: the lists differ in length, a number is out of its range, thresholds do not ascend, or the levels'
            strides do not double.

    Example:
        >>> from lightning_vision.detection import DetectorSettings, TimmLevels
        >>> network = cascade_rcnn(TimmLevels("test_resnet", [8, 16]), DetectorSettings(3, (64, 64)))
        >>> len(network.model.roi_heads.heads)
        3

    Reference: Cai and Vasconcelos 2018, arXiv:1712.00726

    BibTeX:
        @inproceedings{cai2018cascade,
          title = {Cascade R-CNN: Delving Into High Quality Object Detection},
          author = {Cai, Zhaowei and Vasconcelos, Nuno},
          booktitle = {Proceedings of the IEEE Conference on Computer Vision and Pattern Recognition},
          pages = {6154--6162},
          year = {2018},
          eprint = {1712.00726},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        The authors' scores are those of all heads for the last stage's proposals, which runs the earlier heads again;
        here, as in Detectron2 and MMDetection, each head scores the boxes it was given. The authors drop a refined box
        that nearly is an object, because it was one; here the objects that a stage added for itself are not handed on.
        The paper's heads can also move boxes differently for each class; here they move alike for all.

    See also:
        `faster_rcnn`, `CascadeCriterion`, `CascadeDetections`.
    """
    _check(iou_thresholds, stage_weights, coder_weights)
    check_sampling(boxes_per_image, positive_fraction)
    ready = proposal_settings(levels, settings, proposals)
    model = FasterRCNN(**ready, box_head=nn.Identity(), box_predictor=nn.Identity())
    channels, width = settings.pyramid_channels, 4 * settings.pyramid_channels
    sampler = BalancedPositiveNegativeSampler(boxes_per_image, positive_fraction)
    model.roi_heads = CascadeHeads(
        ready["box_roi_pool"],
        [CascadeHead(channels * CELLS**2, width, settings.num_classes) for _ in iou_thresholds],
        [CascadeCriterion(*stage, sampler) for stage in zip(iou_thresholds, coder_weights, stage_weights, strict=True)],
        CascadeDetections(settings.score_threshold, settings.nms_threshold, settings.max_detections),
    )
    in_full_precision(model.rpn.head)
    return TorchvisionDetector(model, levels.strides[-1])


def _check(
    iou_thresholds: Sequence[float], stage_weights: Sequence[float], coder_weights: Sequence[Sequence[float]]
) -> None:
    lists = {"iou_thresholds": iou_thresholds, "stage_weights": stage_weights, "coder_weights": coder_weights}
    for name, value in lists.items():
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise ValueError(f"{name}={value!r} is no list; give a list with an entry for each stage")
    lengths = {name: len(value) for name, value in lists.items()}
    if len(set(lengths.values())) > 1 or not iou_thresholds:
        raise ValueError(f"cascade_rcnn needs one of each for every stage, at least one stage, and got {lengths}")
    if list(iou_thresholds) != sorted(set(iou_thresholds)) or not 0 < iou_thresholds[0] <= iou_thresholds[-1] <= 1:
        raise ValueError(f"iou_thresholds {list(iou_thresholds)} must ascend, above 0 and at most 1")
    if min(stage_weights) < 0:
        raise ValueError(f"stage_weights {list(stage_weights)} must not be negative")
    for weights in coder_weights:
        if not isinstance(weights, Sequence) or len(weights) != 4 or min(weights) <= 0:
            raise ValueError(f"coder_weights of a stage are four numbers above 0, not {weights}")
