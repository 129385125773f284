# What the rows of Tables 3 and 5 need now, and what of it is at hand.
RESNET_CHECKPOINT = f"{RESULTS}/checkpoints/resnet/{{row}}-{{stage}}.safetensors"
RESNET_FILTERS = f"{RESULTS}/filters/resnet_{{row}}.safetensors"
TABLE3_RECORDS = [RESNET_RECORD.format(row=row) for row in RESNETS.in_table3]
NO_ROW = "^$"  # a constraint that nothing meets, at a scale without ResNets


if RESNETS.on_imagenet and workflow.is_main_process and (told := RESNETS.imagenet_absent()):
    print(f"notice: {told}; until then the rows of Tables 3 and 5 are left out", file=sys.stderr)


def net_of(row):
    """A row's checkpoint: of its last training, or of the files that it comes from."""
    return RESNET_CHECKPOINT.format(row=row, stage=[*("weights",), *RESNETS.stages(row)][-1])


def is_measured_now(row):
    """Whether a row has to be measured, and can be."""
    record, filters = RESNET_RECORD.format(row=row), RESNET_FILTERS.format(row=row)
    return (is_needed(record) or not Path(filters).exists()) and ABSENT[row] is None


def is_stage_needed(row, stage):
    """Whether a training may have to run: for its record, or for a checkpoint that what comes after it reads."""
    stages = RESNETS.stages(row)
    following = stages[stages.index(stage) + 1 :]
    read = is_stage_needed(row, following[0]) if following else is_measured_now(row)
    missing = read and not Path(RESNET_CHECKPOINT.format(row=row, stage=stage)).exists()
    return missing or is_needed(RESNET_TRAIN_RECORD.format(row=row, stage=stage))


def trained_records(rows):
    """The records of all trainings of rows that are at hand."""
    return [
        RESNET_TRAIN_RECORD.format(row=row, stage=stage)
        for row in rows
        if ABSENT[row] is None
        for stage in RESNETS.stages(row)
    ]


def small_images(row_is_needed):
    """The scale's prepared images; ImageNet's files are no input, since there are a million of them."""
    return data_for(row_is_needed and not RESNETS.on_imagenet)
