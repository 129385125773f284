# Tables 3 and 5: ResNets, their weights read from files or trained here, each merged with its flipped self.


wildcard_constraints:
    row="|".join(RESNETS.rows) or NO_ROW,
    stage="supervised|pretraining|linear",


localrules:
    figure9,
    prepare_imagenet,
    resnet_weights,
    table3,
    table5,


rule prepare_imagenet:
    output:
        "data/imagenet-{resize}-{size}-{images}-{seed}.safetensors",
    log:
        "data/imagenet-{resize}-{size}-{images}-{seed}.log",
    benchmark:
        "data/imagenet-{resize}-{size}-{images}-{seed}.tsv"
    wildcard_constraints:
        resize=r"\d+|None",
        size=r"\d+",
        images=r"\d+",
    conda:
        "../envs/relusym.yaml"
    threads: 16
    resources:
        mem_mb=4000,
        runtime=120,
    params:
        imagenet={split: str(folder) for split, folder in RESNETS.imagenet.items()},
        label=SETTINGS.config["imagenet"]["label"],
    script:
        "../workflow_scripts/prepare_imagenet.py"


rule resnet_weights:
    input:
        files=lambda w: [file for file in RESNETS.files(w.row) if Path(file).is_file()],
        changed=lambda w: outdated(RESNET_RECORD.format(row=w.row)),
    output:
        checkpoint=RESNET_CHECKPOINT.replace("{stage}", "weights"),
    log:
        f"{LOGS}/resnet_weights/{{row}}.log",
    benchmark:
        f"{BENCHMARKS}/resnet_weights/{{row}}.tsv"
    conda:
        "../envs/relusym.yaml"
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        weights=lambda w: RESNETS.weights(w.row),
        cache="data/weights",
    script:
        "../workflow_scripts/resnet_weights.py"


rule resnet_train:
    input:
        data=lambda w: small_images(is_stage_needed(w.row, w.stage)),
        pretrained=lambda w: (
            RESNET_CHECKPOINT.format(row=w.row, stage="pretraining")
            if w.stage == "linear" and is_stage_needed(w.row, w.stage)
            else []
        ),
        changed=lambda w: outdated(RESNET_TRAIN_RECORD.format(**w)),
    output:
        checkpoint=RESNET_CHECKPOINT,
        record=RESNET_TRAIN_RECORD,
    log:
        f"{LOGS}/resnet_train/{{row}}-{{stage}}.log",
    benchmark:
        f"{BENCHMARKS}/resnet_train/{{row}}-{{stage}}.tsv"
    conda:
        "../envs/relusym.yaml"
    threads: max(SETTINGS.config["threads"], RESNETS.workers) * RESNETS.processes
    resources:
        mem_mb=growing(8000 * RESNETS.processes),
        runtime=1440 if RESNETS.on_imagenet else 240,  # out of it, a training goes on from its saved state
        gpu=GPU * RESNETS.processes,
    params:
        settings=lambda w: RESNETS.train(w.row, w.stage),
        images=str(RESNETS.imagenet["train"]) if RESNETS.on_imagenet else DATA,
        workers=RESNETS.workers,
        restarts=RESNETS.restarts,
        state=f"{RESULTS}/states/resnet/{{row}}-{{stage}}",
        device=SETTINGS.config["device"],
        jobs_per_gpu=JOBS_PER_GPU,
    script:
        "../workflow_scripts/resnet_train.py"


rule resnet_merge:
    input:
        net=lambda w: net_of(w.row) if is_measured_now(w.row) else [],
        data=lambda w: f"data/{RESNETS.prepared(w.row)}.safetensors" if is_measured_now(w.row) else [],
        changed=lambda w: outdated(RESNET_RECORD.format(**w)),
    output:
        record=RESNET_RECORD,
        filters=RESNET_FILTERS,
    log:
        f"{LOGS}/resnet_merge/{{row}}.log",
    benchmark:
        f"{BENCHMARKS}/resnet_merge/{{row}}.tsv"
    localrule: all(ABSENT.values())  # then it only says so
    conda:
        "../envs/relusym.yaml"
    threads: SETTINGS.config["threads"]
    resources:
        mem_mb=growing(16000 if RESNETS.on_imagenet else 4000),
        runtime=growing(240),
        gpu=GPU,
    params:
        settings=lambda w: RESNETS.merge(w.row),
        absent=lambda w: ABSENT[w.row],
        device=SETTINGS.config["device"],
        jobs_per_gpu=JOBS_PER_GPU,
    script:
        "../workflow_scripts/resnet_merge.py"


rule table5:
    input:
        records=list(RESNET_MERGE),
        trained=trained_records(RESNETS.rows),
        changed=changed(*RESNET_MERGE),
        code=[*TABLE_CODE, f"{LIBRARY}/findings/paper/table5.csv"],
    output:
        table("table5"),
    log:
        f"{LOGS}/table5.log",
    benchmark:
        f"{BENCHMARKS}/tables/table5.tsv"
    conda:
        "../envs/relusym.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        rows={row: RESNETS.shown(row) for row in RESNETS.rows},
        notes=RESNETS.notes(),
    script:
        "../workflow_scripts/table5.py"


use rule table5 as table3 with:
    input:
        records=TABLE3_RECORDS,
        trained=trained_records(RESNETS.in_table3),
        changed=changed(*TABLE3_RECORDS),
        code=[*TABLE_CODE, f"{LIBRARY}/findings/paper/table5.csv"],
    output:
        table("table3"),
    log:
        f"{LOGS}/table3.log",
    benchmark:
        f"{BENCHMARKS}/tables/table3.tsv"
    params:
        rows={row: RESNETS.shown(row) for row in RESNETS.in_table3},
        notes=RESNETS.notes(),


if RESNETS.figure9:

    rule figure9:
        input:
            filters=RESNET_FILTERS.format(row=RESNETS.figure9),
            code=f"{LIBRARY}/findings/figure9.py",
        output:
            figure("figure9", "Figure 9"),
        log:
            f"{LOGS}/figure9.log",
        benchmark:
            f"{BENCHMARKS}/figures/figure9.tsv"
        conda:
            "../envs/relusym.yaml"
        resources:
            mem_mb=1000,
            runtime=10,
        params:
            name=RESNETS.shown(RESNETS.figure9)["name"],
        script:
            "../workflow_scripts/figure9.py"
