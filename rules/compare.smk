# Beside the paper: every cell of the tables, and what the paper says in words, tested on the records.
# Another table joins by its number and the kinds of records that its settings are told by.
COMPARED = {1: ["train"], 2: ["train", "flip_merge"], 4: ["train", "pair_merge"]}
if RESNETS.rows:
    COMPARED |= {3: ["resnet_merge"], 5: ["resnet_merge"]}
COMPARED_RECORDS = [*TRAIN_RECORDS, *FLIP_RECORDS, *PAIR_RECORDS, *RESNET_MERGE]

# What each table and figure is made of, by kinds of records.
MADE_OF = {
    "Table 1": ["train"],
    "Table 2": ["train", "flip_merge"],
    "Table 3": ["resnet_train", "resnet_merge"],
    "Table 4": ["pair_merge"],
    "Table 5": ["resnet_train", "resnet_merge"],
    "Figure 9": ["resnet_merge"],
    "Figures 1, 2, 5 to 8": ["flip_merge"],
    "Figure 3": ["flipped_training"],
    "Figure 4": ["flip_merge"],
    "Zero-filters": ["flip_merge"],
    "Theory": ["theory"],
    "Comparison": ["train", "flip_merge", "pair_merge", "resnet_merge"],
    "Claims": ["train", "flip_merge", "pair_merge"],
}


localrules:
    compare,
    comparison,
    claims,
    provenance,


rule comparison:
    input:
        tables=[f"{RESULTS}/tables/table{number}.csv" for number in COMPARED],
        records=COMPARED_RECORDS,
        changed=changed(*COMPARED_RECORDS),
        code=[f"{LIBRARY}/findings/{name}.py" for name in ("comparison", "tables")],
    output:
        table("comparison", "Comparison with the paper"),
    log:
        f"{LOGS}/comparison.log",
    benchmark:
        f"{BENCHMARKS}/tables/comparison.tsv"
    conda:
        "../envs/relusym.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        made_of=COMPARED,
        notes=NOTES,
    script:
        "../workflow_scripts/comparison.py"


rule claims:
    input:
        train=TRAIN_RECORDS,
        flip_merge=FLIP_RECORDS,
        pair_merge=PAIR_RECORDS,
        zero_filters=f"{RESULTS}/figures/zero_filters_by_net.csv",
        changed=changed(*TRAIN_RECORDS, *FLIP_RECORDS, *PAIR_RECORDS),
        code=[f"{LIBRARY}/findings/{name}.py" for name in ("claims", "permutation_order", "tables")],
    output:
        table("claims", "Comparison with the paper"),
    log:
        f"{LOGS}/claims.log",
    benchmark:
        f"{BENCHMARKS}/tables/claims.tsv"
    conda:
        "../envs/relusym.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        notes=NOTES,
    script:
        "../workflow_scripts/claims.py"


rule provenance:
    input:
        records=[*COMPARED_RECORDS, *trained_records(RESNETS.rows), *ALONE],
        changed=changed(*COMPARED_RECORDS, *trained_records(RESNETS.rows), *ALONE),
        code=[f"{LIBRARY}/findings/{name}.py" for name in ("provenance", "tables")],
    output:
        table("provenance", "Costs and provenance"),
    log:
        f"{LOGS}/provenance.log",
    benchmark:
        f"{BENCHMARKS}/tables/provenance.tsv"
    conda:
        "../envs/relusym.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        made_of=MADE_OF,
        notes=NOTES,
    script:
        "../workflow_scripts/provenance.py"


rule compare:
    input:
        rules.comparison.output,
        rules.claims.output,
