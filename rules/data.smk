# Images, prepared once per source as one file of uint8 arrays.


rule prepare_data:
    output:
        update("data/{dataset}.safetensors"),
    log:
        "data/{dataset}.log",
    wildcard_constraints:
        dataset="|".join(sorted({Path(job.prepared).stem for job in RESULTS.jobs.values() if job.prepared})),
    localrule: True
    conda:
        ENVIRONMENT
    threads: 2
    resources:
        mem_mb=4000,
        runtime=120,
    params:
        spec=lambda w: SETTINGS.preparation(w.dataset)[0],
        key=lambda w: SETTINGS.preparation(w.dataset)[1],
        label=lambda w: SETTINGS.label(SETTINGS.readers(w.dataset)[0]),
    script:
        "../workflow_scripts/prepare_data.py"


# A workflow that uses this one as a module may prefix all paths.
RESULTS.prefix = rules.prepare_data.output[0].removesuffix("data/{dataset}.safetensors")
