"""How things are called in the report. Titles of countermeasures and attacks stand with them in `tasks.learning`."""

from tasks.learning.adaptive import ATTACKS
from tasks.learning.countermeasures import COUNTERMEASURES

ARCHITECTURES = {
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "mobilenet_v2": "MobileNetV2",
    "vgg11_bn": "VGG-11",
    "densenet121": "DenseNet-121",
    "vit_small": "small ViT",
    "linear": "linear layer",
}
TRIALS = {
    "wrong-key": "another key",
    "one-bit-wrong-key": "a key with one wrong bit",
    "swapped-dataset": "the key under another data set's name",
    "replayed-payload": "another image's payload",
    "another-image-id": "another image's id",
    "flipped-bit": "one bit of the pixels flipped",
}


def treatment(countermeasure: str, attack: str = "none") -> str:
    """What was done to the training, in words."""
    words = [ATTACKS[attack].title if attack in ATTACKS else plain(attack)] if attack != "none" else []
    if countermeasure != "none" or not words:
        words.append(countermeasure_title(countermeasure))
    return " with ".join(words)


def countermeasure_title(name: str) -> str:
    """A countermeasure in words."""
    return COUNTERMEASURES[name].title if name in COUNTERMEASURES else plain(name)


def architecture(name: str) -> str:
    """A network's name as its authors write it."""
    return ARCHITECTURES.get(name, name)


def trial(name: str) -> str:
    """A misuse of keys in words."""
    return TRIALS.get(name, plain(name))


def plain(name: str) -> str:
    """A name that no list has."""
    return name.replace("-", " ").replace("_", " ")
