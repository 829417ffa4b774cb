"""Data in another form, and what each form hides: often less than it looks like.

| function | hides | does not hide |
|---|---|---|
| `scramble` | what an image shows, from a person who looks at it | classes, statistics; the order of pixels, from anybody who has many images or one known pair |
| `mix` | one image in one encoding, from a person who looks at it | the images, from anybody who has several encodings of each (Carlini 2021) |
| `randomized_response` | each label, by a factor of e^epsilon, from everybody | the share of each class; the examples |
| `smoothed` | nothing | labels |

Only `randomized_response` here, and `keras_dlopt.privacy` for whole examples, have a
proof. The tests carry out the attacks, and hold the figures that `docs/privacy.md`
names.
"""  # noqa: E501

from keras_dlopt.data.obfuscate.labels import (
    class_shares,
    randomized_response,
    smoothed,
)
from keras_dlopt.data.obfuscate.mixing import mix
from keras_dlopt.data.obfuscate.permutation import (
    Permutation,
    Scrambled,
    scramble,
    unscramble,
)

__all__ = [
    "Permutation",
    "Scrambled",
    "class_shares",
    "mix",
    "randomized_response",
    "scramble",
    "smoothed",
    "unscramble",
]
