"""A small generated data set: 2,000 training and 500 test images of 32x32 in 8 classes, no download.

A class is a shape (cross, disc, ring, triangle) with a texture (checked, striped). Place, size, a slight turn, the two
colours of the texture, the background's colour and shading, the clutter and the noise are drawn at random and say
nothing about the class. Its difficulty was set on clean images alone: torchvision's ResNet-18 with its own stem passes
90 % test accuracy in ten epochs. It shows the pipeline at work in minutes and is no evidence for anything.

Every byte is the same on every machine: the random stream is numpy's RandomState, which is frozen, and everything that
is drawn is integer arithmetic. Geometry lies on a grid of 128x128 points, four by four a pixel.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from tasks.datasets.source import CommonParameters, Place, Source, Split

SIDE = 32
COUNTS = {"train": 2000, "test": 500}
SHAPES = ("cross", "disc", "ring", "triangle")
TEXTURES = ("checked", "striped")
CLASSES = sorted(f"{texture} {shape}" for texture in TEXTURES for shape in SHAPES)

_FINE = 4
_GRID = SIDE * _FINE
_SEED = 20240229
_NOISE = 10
_CONTRAST = 60

Parameters = CommonParameters

Points = NDArray[np.int64]
Mask = NDArray[np.bool_]


@contextmanager
def open_source(parameters: CommonParameters, place: Place) -> Iterator[Source]:
    """Both splits; image i of a split is drawn when it is read, and depends on i alone."""
    splits = {
        split: Split([i % len(CLASSES) for i in range(count)], _Drawer(number).draw)
        for number, (split, count) in enumerate(COUNTS.items())
    }
    yield Source(CLASSES, splits, "generated")


class _Drawer:
    """Draws the images of one split."""

    def __init__(self, split: int) -> None:
        self.split = split

    def draw(self, index: int) -> NDArray[np.uint8]:
        """Image `index`, uint8 [32, 32, 3]."""
        random = np.random.RandomState([_SEED, self.split, index])
        texture, shape = CLASSES[index % len(CLASSES)].split()
        background, light, dark = _colours(random)
        canvas = _gradient(random, background)
        for _ in range(random.randint(1, 4)):
            canvas[_clutter(random)] = random.randint(0, 256, 3)
        u, v, size, length = _frame(random)
        mask = _shape(shape, u, v, size * length)
        pattern = _texture(random, texture, u, v, length)
        canvas[mask & pattern] = light
        canvas[mask & ~pattern] = dark
        pixels = canvas.reshape(SIDE, _FINE, SIDE, _FINE, 3).sum(axis=(1, 3)) // _FINE**2
        noise = random.randint(-_NOISE, _NOISE + 1, (2, SIDE, SIDE, 3)).sum(axis=0)
        return np.clip(pixels + noise, 0, 255).astype(np.uint8)


def _axes() -> tuple[Points, Points]:
    y, x = np.mgrid[0:_GRID, 0:_GRID]
    return x.astype(np.int64), y.astype(np.int64)


_X, _Y = _axes()


def _colours(random: np.random.RandomState) -> tuple[Points, Points, Points]:
    """Background, light and dark: three colours whose brightness differs enough to be told apart."""
    while True:
        colours = random.randint(0, 256, (3, 3))
        brightness = colours @ np.array([2, 5, 1]) // 8
        dark, middle, light = np.argsort(brightness, kind="stable")
        steps = brightness[middle] - brightness[dark], brightness[light] - brightness[middle]
        if min(steps) >= _CONTRAST:
            places = [(dark, light, middle), (middle, light, dark), (light, middle, dark)]
            background, first, second = places[random.randint(0, 3)]
            return colours[background], colours[first], colours[second]


def _gradient(random: np.random.RandomState, colour: Points) -> Points:
    """A background [128, 128, 3] whose brightness runs from one side to the other."""
    direction = random.randint(-24, 25, 2)
    ramp = ((_X - _GRID // 2) * direction[0] + (_Y - _GRID // 2) * direction[1]) // (_GRID // 2)
    return np.clip(colour[None, None, :] + ramp[:, :, None], 0, 255)


def _clutter(random: np.random.RandomState) -> Mask:
    """A small bar or blob somewhere."""
    x, y = random.randint(0, _GRID, 2)
    if random.randint(0, 2):
        return (_X - x) ** 2 + (_Y - y) ** 2 <= random.randint(4, 11) ** 2
    width, height = random.randint(4, 25, 2)
    return (abs(_X - x) <= width) & (abs(_Y - y) <= height // 3)


def _frame(random: np.random.RandomState) -> tuple[Points, Points, int, int]:
    """Coordinates (u, v) about the object's centre, turned and scaled by `length`, and the object's half size."""
    size = int(random.randint(44, 60))
    x, y = random.randint(size - 4, _GRID - size + 5, 2)
    a, b = 100, int(random.randint(-30, 31))  # a turn of up to 17 degrees
    u = (_X - x) * a + (_Y - y) * b
    v = (_Y - y) * a - (_X - x) * b
    return u, v, size, math.isqrt(a * a + b * b)


def _shape(shape: str, u: Points, v: Points, r: int) -> Mask:
    """Which points lie inside a shape of half size r."""
    distance = u * u + v * v
    if shape == "disc":
        return distance <= r * r
    if shape == "ring":
        return (distance <= r * r) & (distance * 4 >= r * r)
    if shape == "cross":
        return (np.maximum(abs(u), abs(v)) <= r) & (np.minimum(abs(u), abs(v)) * 3 <= r)
    return (v * 2 <= r) & (v * 4 + 4 * r >= abs(u) * 7)  # triangle: its base at r/2, its tip at -r


def _texture(random: np.random.RandomState, texture: str, u: Points, v: Points, length: int) -> Mask:
    """Where the texture is light: stripes along v, or checks."""
    period = int(random.randint(16, 22)) * length
    u, v = u + int(random.randint(0, 100)) * length, v + int(random.randint(0, 100)) * length
    columns = (u // period) % 2 == 0
    return columns if texture == "striped" else columns ^ ((v // period) % 2 == 0)
