# The arrays of every net's filters, beside the records: what the figures of filters are drawn from.


localrules:
    filters,


rule filters:
    input:
        net=lambda w: CHECKPOINT.format(**w) if filters_or_merge_needed(w) else [],
        record=lambda w: FLIP_RECORD.format(**w) if filters_or_merge_needed(w) else [],
        changed=lambda w: changed(FILTERS_FILE.format(**w)),
    output:
        FILTERS_FILE,
    log:
        f"{LOGS}/filters/{{model}}-{{seed}}.log",
    benchmark:
        f"{BENCHMARKS}/filters/{{model}}-{{seed}}.tsv"
    conda:
        "../envs/relusym.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        settings=lambda w: SETTINGS.filters(w.model),
    script:
        "../workflow_scripts/filters.py"
