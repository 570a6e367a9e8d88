"""Print a bash script that completes subcommands, configs and class names."""

from lightning_vision.catalogue import entries
from lightning_vision.commands import help_lines
from lightning_vision.commands._arguments import Parser
from lightning_vision.commands._explain import METHODS, MODES
from lightning_vision.configs import shipped

SCRIPT = """\
_lightning_vision() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}}
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{commands}" -- "$word"))
    elif [ "$before" = "--config" ] || [ "$before" = "-c" ]; then
        COMPREPLY=($(compgen -W "{configs}" -- "$word") $(compgen -f -- "$word"))
    elif [ "$before" = "--model" ] || [ "$before" = "--data" ] || [[ "$before" == --callbacks.* ]]; then
        COMPREPLY=($(compgen -W "{classes}" -- "$word"))
    elif [ "$before" = "--mode" ]; then
        COMPREPLY=($(compgen -W "{modes}" -- "$word"))
    elif [ "$before" = "--method" ]; then
        COMPREPLY=($(compgen -W "{methods}" -- "$word"))
    elif [[ "$before" == *backbone ]]; then
        COMPREPLY=($(compgen -W "{backbones}" -- "$word"))
    else
        COMPREPLY=($(compgen -W "--config --model --data --trainer --help" -- "$word") $(compgen -f -- "$word"))
    fi
}}
complete -F _lightning_vision lightning_vision
"""


def main(argv: list[str]) -> str:
    """Print the script; `source <(lightning_vision completion)` switches it on.

    Args:
        argv: No arguments.
    """
    Parser("lightning_vision completion", description=__doc__).parse_args(argv)
    script = SCRIPT.format(
        commands=" ".join(help_lines()),
        configs=" ".join(shipped()),
        modes=" ".join(MODES),
        methods=" ".join(METHODS),
        classes=" ".join(entry.name for entry in entries() if entry.kind in ("task", "callback", "datamodule")),
        backbones=" ".join(entry.name for entry in entries() if entry.kind == "backbone"),
    )
    print(script, end="")
    return script
