"""Show the tasks, callbacks, datamodules, augmentations, backbones or configs that exist."""

from lightning_vision.catalogue import entries
from lightning_vision.commands._arguments import Parser
from lightning_vision.configs import shipped

KINDS = ("tasks", "callbacks", "datamodules", "augmentations", "backbones", "configs")


def main(argv: list[str]) -> list[str]:
    """Print one line an entry and return the names.

    Args:
        argv: A kind, and for backbones optionally `--timm PATTERN`.
    """
    parser = Parser("lightning_vision list", description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--timm", metavar="PATTERN", help="add timm's names that match, for example 'resnet*'")
    options = parser.parse_args(argv)
    if options.timm and options.kind != "backbones":
        raise ValueError(f"--timm goes with `list backbones`, not with `list {options.kind}`")
    if options.kind == "configs":
        rows = {
            name: path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ") for name, path in shipped().items()
        }
    else:
        rows = {entry.name: entry.summary for entry in entries() if entry.kind == options.kind.removesuffix("s")}
    if options.kind == "augmentations":
        from lightning_vision.datamodules.augmentation.chain import Chain
        from lightning_vision.datamodules.augmentation.policies import POLICIES, policy

        for name in POLICIES:
            augmentation = policy(name, (224, 224))
            stages = augmentation.stages if isinstance(augmentation, Chain) else filter(None, [augmentation])
            rows[name] = "policy: " + (", then ".join(type(stage).__name__ for stage in stages) or "nothing")
    if options.timm:
        import timm

        found = {name: "timm" for name in timm.list_models(options.timm) if name not in rows}
        if not found:
            raise ValueError(f"--timm {options.timm}: timm has no network of that name; try '*{options.timm}*'")
        rows |= found
    width = max(map(len, rows), default=0)
    for name, line in rows.items():
        print(f"{name:{width}}  {line}")
    return list(rows)
