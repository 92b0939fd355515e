"""The 27 classes of COCO-Stuff-27: COCO's thing and stuff supercategories, including those of the panoptic task."""

from __future__ import annotations

import numpy as np

from diffseg.segmentation import IGNORE

COCO_27 = {
    "electronic": "72-77",
    "appliance": "78-83",
    "food": "52-61",
    "furniture": "62-71",
    "indoor": "84-91",
    "kitchen": "44-51",
    "accessory": "26-33",
    "animal": "16-25",
    "outdoor": "10-15",
    "person": "1",
    "sports": "34-43",
    "vehicle": "2-9",
    "ceiling": "102-103 186",
    "floor": "101 114-118 190",
    "food-stuff": "121-122 153 170 196",
    "furniture-stuff": "98 107-108 110 112 123 130 133 156 161 165 188-189",
    "raw-material": "100 132 139 143 195",
    "textile": "92-93 104-105 109 131 137 141 152 167-168 200",
    "wall": "171-177 199",
    "window": "180-181",
    "building": "95-96 128 151 158 166 197",
    "ground": "111 125-126 136 140 144-145 147 149 154 159 191 194",
    "plant": "94 97 119 124 129 134 142 163 169 184 193",
    "sky": "106 157 187",
    "solid": "127 135 150 160 162 182 192 198",
    "structural": "99 113 138 146 164 185",
    "water": "120 148 155 178-179",
}
"""Category ids of each class. COCO-Stuff and the panoptic task share ids; ids from 183 exist in the panoptic task only.

The order is that of PiCIE and its successors, because it breaks ties between classes."""


def category_table() -> np.ndarray:
    """Return the index in `COCO_27` of each category id: uint16 [201], 65535 for ids that are not a category."""
    table = np.full(201, IGNORE, np.uint16)
    for index, ranges in enumerate(COCO_27.values()):
        for id_range in ranges.split():
            first, _, last = id_range.partition("-")
            table[int(first) : int(last or first) + 1] = index
    return table
