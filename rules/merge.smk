# Merging every net with its flipped self (the GCNN barrier, Table 2) and with other nets (Table 4).


rule flip_merge:
    input:
        nets=lambda w: checkpoints_to_merge(FLIP_RECORD.format(**w), [(w.model, w.seed)]),
        data=lambda w: data_for(is_needed(FLIP_RECORD.format(**w))),
        changed=lambda w: outdated(FLIP_RECORD.format(**w)),
    output:
        record=FLIP_RECORD,
        filters=FILTERS_FILE,  # small arrays, what the figures of filters are drawn from
    log:
        f"{LOGS}/flip_merge/{{model}}-{{seed}}.log",
    benchmark:
        f"{BENCHMARKS}/flip_merge/{{model}}-{{seed}}.tsv"
    conda:
        "../envs/relusym.yaml"
    threads: SETTINGS.config["threads"]
    resources:
        mem_mb=growing(6000),
        runtime=growing(30),
        gpu=GPU,
    params:
        nets=[CHECKPOINT],
        data=DATA,
        settings=lambda w: SETTINGS.merge([w.model]),
        filters=lambda w: SETTINGS.filters(w.model),
        device=SETTINGS.config["device"],
        jobs_per_gpu=JOBS_PER_GPU,
    script:
        "../workflow_scripts/merge.py"


rule pair_merge:
    input:
        nets=lambda w: checkpoints_to_merge(
            PAIR_RECORD.format(**w), [(w.model_1, w.seed_1), (w.model_2, w.seed_2)]
        ),
        data=lambda w: data_for(is_needed(PAIR_RECORD.format(**w))),
        changed=lambda w: outdated(PAIR_RECORD.format(**w)),
    output:
        record=PAIR_RECORD,
    log:
        f"{LOGS}/pair_merge/{{model_1}}-{{seed_1}}--{{model_2}}-{{seed_2}}.log",
    benchmark:
        f"{BENCHMARKS}/pair_merge/{{model_1}}-{{seed_1}}--{{model_2}}-{{seed_2}}.tsv"
    conda:
        "../envs/relusym.yaml"
    threads: SETTINGS.config["threads"]
    resources:
        mem_mb=growing(6000),
        runtime=growing(30),
        gpu=GPU,
    params:
        nets=[
            CHECKPOINT.replace("{model}-{seed}", "{model_1}-{seed_1}"),
            CHECKPOINT.replace("{model}-{seed}", "{model_2}-{seed_2}"),
        ],
        data=DATA,
        settings=lambda w: SETTINGS.merge([w.model_1, w.model_2]),
        device=SETTINGS.config["device"],
        jobs_per_gpu=JOBS_PER_GPU,
    script:
        "../workflow_scripts/merge.py"
