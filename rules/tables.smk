# Tables 1, 2 and 4 from records alone, and the table of what each kind of job cost.
# A table is made again if the code that lays it out is newer.
LIBRARY = f"{workflow.basedir}/workflow_scripts/relusym"
TABLE_CODE = [f"{LIBRARY}/findings/tables.py", *(f"{LIBRARY}/findings/paper/table{number}.csv" for number in (1, 2, 4))]


localrules:
    table1,
    table2,
    table4,
    costs,


rule table1:
    input:
        train=TRAIN_RECORDS,
        changed=changed(*TRAIN_RECORDS),
        code=TABLE_CODE,
    output:
        table("table1"),
    log:
        f"{LOGS}/table1.log",
    benchmark:
        f"{BENCHMARKS}/tables/table1.tsv"
    conda:
        "../envs/relusym.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        models=SETTINGS.models,
        notes=NOTES,
    script:
        "../workflow_scripts/table1.py"


rule table2:
    input:
        train=TRAIN_RECORDS,
        flip_merge=FLIP_RECORDS,
        changed=changed(*TRAIN_RECORDS, *FLIP_RECORDS),
        code=TABLE_CODE,
    output:
        table("table2"),
    log:
        f"{LOGS}/table2.log",
    benchmark:
        f"{BENCHMARKS}/tables/table2.tsv"
    conda:
        "../envs/relusym.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        models=SETTINGS.models,
        notes=NOTES,
    script:
        "../workflow_scripts/table2.py"


rule table4:
    input:
        pair_merge=PAIR_RECORDS,
        changed=changed(*PAIR_RECORDS),
        code=TABLE_CODE,
    output:
        table("table4"),
    log:
        f"{LOGS}/table4.log",
    benchmark:
        f"{BENCHMARKS}/tables/table4.tsv"
    conda:
        "../envs/relusym.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        pairs=SETTINGS.types_paired,
        notes=NOTES,
    script:
        "../workflow_scripts/table4.py"


rule costs:
    input:
        TRAIN_RECORDS,
        FLIP_RECORDS,
        PAIR_RECORDS,
        list(RESNET_MERGE),
        changed=changed(*TRAIN_RECORDS, *FLIP_RECORDS, *PAIR_RECORDS, *RESNET_MERGE),
        code=TABLE_CODE,
    output:
        table("costs", "Costs and provenance"),
    log:
        f"{LOGS}/costs.log",
    benchmark:
        f"{BENCHMARKS}/tables/costs.tsv"
    conda:
        "../envs/relusym.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        benchmarks=BENCHMARKS,
        kinds=list(JOBS),
    script:
        "../workflow_scripts/costs.py"
