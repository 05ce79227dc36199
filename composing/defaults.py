"""Texts that both the stages and the nodes' widgets start from; importing them loads nothing."""

PROMPT = "a realistic photo of {}"  # the reference's; {} is the place alone, no subject is named
# What a realistic background must not have, in an order of its own; our wording of the reference's list.
NEGATIVE = (
    "text, watermark, logo, frame, collage, drawing, cartoon, render, blurry, low quality, distorted, "
    "deformed, extra objects, duplicate"
)
