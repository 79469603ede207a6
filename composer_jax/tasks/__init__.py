"""What a Composer is for, one task a file: functions from arrays to images.

Each takes a `Composer`, uint8 images of any side, and a seed an image; it returns uint8
images of the side that the cascade gives. All are choices of conditions; the model is
the same (Composer, section 3).
"""
