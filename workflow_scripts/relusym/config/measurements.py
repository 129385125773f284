"""What is measured beyond the paper (docs/beyond.md), by the names in a scale's section `beyond`, without PyTorch."""

from relusym.registry import Entry

COUNT = {"type": "integer", "minimum": 1}
POSITIVE = {"type": "number", "exclusiveMinimum": 0}
IMAGES = {
    "images": {"type": ["integer", "null"], "minimum": 1, "default": None}
}  # to merge on; null: the model's

# Each is called with a `measure.Subject` and the job's settings, and gives the body of the record. Its options are
# keys of its section in the config, where `models`, `pairs` and `seeds` say of which nets it is (`Settings.subjects`).
MEASUREMENTS = {
    "exact_gcnn": Entry(
        "relusym.measuring.exact_gcnn:measure",
        {
            **IMAGES,
            "matching": {"enum": ["involution"], "default": "involution"},
            "fine_tuning": {
                "type": "object",
                "additionalProperties": False,
                "required": ["epochs", "learning_rate"],
                "properties": {"epochs": COUNT, "learning_rate": POSITIVE},
                "default": {"epochs": 2, "learning_rate": 0.005},
            },
            "from_scratch": {"type": "array", "items": {"type": "string"}, "default": []},
        },
    ),
    "symmetries": Entry("relusym.measuring.measure:symmetries", IMAGES),
    "curves": Entry(
        "relusym.measuring.measure:curves",
        {
            **IMAGES,
            # odd, so that one is halfway
            "points": {"type": "integer", "minimum": 3, "not": {"multipleOf": 2}, "default": 21},
            "repair_images": {"type": ["integer", "null"], "minimum": 1, "default": None},
        },
    ),
    "during_training": Entry("relusym.measuring.measure:during_training", IMAGES),
    "by_layer": Entry("relusym.measuring.measure:by_layer", IMAGES),
}
# Which nets and matchings (null: the config's) the target `matchings` is of; its merges are flip_merge and pair_merge
# records.
OF_MERGES = {
    "matchings": {"type": ["array", "null"], "items": {"type": "string"}, "minItems": 1, "default": None}
}
SECTIONS = {"matchings": Entry("relusym.measuring.merge:merge_record", OF_MERGES), **MEASUREMENTS}
SELECTION = "models", "pairs", "seeds"
