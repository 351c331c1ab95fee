"""Pre-train with lightly-train: train.py OUT DATA [OPTION=VALUE ...], options being those of lightly_train.pretrain."""

import json
import sys

import lightly_train


def main(out: str, data: str, *options: str) -> None:
    settings = {"model": "dinov2/vits14", "method": "dinov2"}
    for option in options:
        name, _, value = option.partition("=")
        try:
            settings[name] = json.loads(value)
        except json.JSONDecodeError:
            settings[name] = value
    lightly_train.pretrain(out=out, data=data, **settings)


if __name__ == "__main__":
    main(*sys.argv[1:])
