"""Writes tests/chelsea_2x_reference.png: the whole picture in one piece, by another implementation.

pip install onnxruntime==1.31.1 numpy pillow, then: python reference.py
"""

from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

HERE = Path(__file__).parent
EATEN = 7

picture = np.asarray(Image.open(HERE / "chelsea.png").convert("RGB"), np.float32) / 255
padded = np.pad(picture, ((EATEN, EATEN), (EATEN, EATEN), (0, 0)), "edge")
session = onnxruntime.InferenceSession(HERE / "models/waifu2x/upconv_7/scale2x.onnx")
(enlarged,) = session.run(None, {"input": padded.transpose(2, 0, 1)[None]})
pixels = (enlarged[0].transpose(1, 2, 0).clip(0, 1) * 255).round().astype(np.uint8)
Image.fromarray(pixels).save(HERE / "tests/chelsea_2x_reference.png", optimize=True)
