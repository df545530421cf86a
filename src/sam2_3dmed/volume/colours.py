"""A colour for each class, the same in every format that has colours."""

import colorsys


def colour_of(number: int) -> tuple[int, int, int]:
    """Red, green and blue (0 to 255) of class `number`, from 1: well apart for neighbours, without end."""
    hue = (number - 1) * 0.61803398875 % 1.0  # the golden ratio
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.75 if number % 2 else 0.55, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)
