# The figures, from records and the arrays beside them alone.
#
# Figures 1, 2 and 5 to 8 show the first net of a type, by seed, that isn't left out. For any net:
#   snakemake --cores all results/<scale>/figures/filters/conv2-gcnn-3.png

FILTER_PAIRS = {  # figure: conv layer, the nets' types in the paper, whether the matches are flipped back
    "figure1": ("conv1", ["cnn_inv", "cnn"], True),
    "figure5": ("conv2", ["cnn_inv"], False),
    "figure6": ("conv2", ["cnn"], False),
    "figure7": ("conv1", ["gcnn"], False),
    "figure8": ("conv2", ["gcnn"], False),
}
FILTER_PAIRS = {  # without those of which the config has no type
    figure: (layer, models, flipped_back)
    for figure, (layer, paper_models, flipped_back) in FILTER_PAIRS.items()
    if (models := [model for model in paper_models if model in SETTINGS.models])
}
FIGURE_2_MODEL = "cnn_inv" if "cnn_inv" in SETTINGS.models else SETTINGS.models[0]
NAMES = paper_values.names()


localrules:
    flipped_training,
    figure2,
    figure3,
    figure4,
    figure10,
    zero_filters,
    filter_pairs,


for name, (layer, models, flipped_back) in FILTER_PAIRS.items():

    rule:
        name:
            name
        input:
            filters=filters_beside(flip_records_of(*models)),
            changed=changed(*flip_records_of(*models)),
            code=f"{workflow.basedir}/workflow_scripts/relusym/findings/filter_pairs.py",
        output:
            figure(name, name.replace("figure", "Figure ")),
        log:
            f"{LOGS}/{name}.log",
        benchmark:
            f"{BENCHMARKS}/figures/{name}.tsv"
        localrule: True
        conda:
            "../envs/relusym.yaml"
        resources:
            mem_mb=1000,
            runtime=10,
        params:
            files=[filters_beside(flip_records_of(model)) for model in models],
            layer=layer,
            flipped_back=flipped_back,
            zero_filter=SETTINGS.config["filters"]["zero_filter"],
            names=", ".join(NAMES.get(model, model) for model in models),
        script:
            "../workflow_scripts/filter_pairs.py"


rule filter_pairs:
    input:
        filters=FILTERS_FILE,
        code=f"{workflow.basedir}/workflow_scripts/relusym/findings/filter_pairs.py",
    output:
        multiext(f"{RESULTS}/figures/filters/{{layer}}-{{model}}-{{seed}}", ".png", ".pdf"),
    log:
        f"{LOGS}/filter_pairs/{{layer}}-{{model}}-{{seed}}.log",
    benchmark:
        f"{BENCHMARKS}/filter_pairs/{{layer}}-{{model}}-{{seed}}.tsv"
    wildcard_constraints:
        layer="conv1|conv2",
    conda:
        "../envs/relusym.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        files=lambda w: [[FILTERS_FILE.format(model=w.model, seed=w.seed)]],
        layer=lambda w: w.layer,
        flipped_back=False,
        zero_filter=SETTINGS.config["filters"]["zero_filter"],
    script:
        "../workflow_scripts/filter_pairs.py"


rule figure2:
    input:
        filters=filters_beside(flip_records_of(FIGURE_2_MODEL)),
        changed=changed(*flip_records_of(FIGURE_2_MODEL)),
        code=f"{workflow.basedir}/workflow_scripts/relusym/findings/figure2.py",
    output:
        figure("figure2", "Figure 2"),
    log:
        f"{LOGS}/figure2.log",
    benchmark:
        f"{BENCHMARKS}/figures/figure2.tsv"
    conda:
        "../envs/relusym.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    script:
        "../workflow_scripts/figure2.py"


rule flipped_training:
    input:
        data=lambda w: data_for(is_needed(FLIPPED_TRAINING_RECORD)),
        changed=outdated(FLIPPED_TRAINING_RECORD),
    output:
        record=FLIPPED_TRAINING_RECORD,
    log:
        f"{LOGS}/flipped_training.log",
    benchmark:
        f"{BENCHMARKS}/flipped_training/flipped_training.tsv"
    conda:
        "../envs/relusym.yaml"
    threads: SETTINGS.config["threads"]
    resources:
        mem_mb=growing(4000),
        runtime=growing(30),
    params:
        data=DATA,
        settings=SETTINGS.flipped_training(),
    script:
        "../workflow_scripts/flipped_training.py"


rule figure3:
    input:
        record=FLIPPED_TRAINING_RECORD,
        changed=changed(FLIPPED_TRAINING_RECORD),
        code=f"{workflow.basedir}/workflow_scripts/relusym/findings/figure3.py",
    output:
        figure("figure3", "Figure 3"),
    log:
        f"{LOGS}/figure3.log",
    benchmark:
        f"{BENCHMARKS}/figures/figure3.tsv"
    conda:
        "../envs/relusym.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    script:
        "../workflow_scripts/figure3.py"


rule figure4:
    input:
        flip_merge=FLIP_RECORDS,
        changed=changed(*FLIP_RECORDS),
        code=f"{workflow.basedir}/workflow_scripts/relusym/findings/permutation_order.py",
    output:
        figure("figure4", "Figure 4", ".csv"),
    log:
        f"{LOGS}/figure4.log",
    benchmark:
        f"{BENCHMARKS}/figures/figure4.tsv"
    conda:
        "../envs/relusym.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        models=SETTINGS.models,
    script:
        "../workflow_scripts/figure4.py"


rule figure10:
    input:
        code=f"{workflow.basedir}/workflow_scripts/relusym/findings/figure10.py",
    output:
        figure("figure10", "Figure 10"),
    log:
        f"{LOGS}/figure10.log",
    benchmark:
        f"{BENCHMARKS}/figures/figure10.tsv"
    conda:
        "../envs/relusym.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        seed=SETTINGS.config["theory"]["seed"],
    script:
        "../workflow_scripts/figure10.py"


rule zero_filters:
    input:
        filters=filters_beside(FLIP_RECORDS),
        changed=changed(*FLIP_RECORDS),
        code=f"{workflow.basedir}/workflow_scripts/relusym/findings/zero_filters.py",
    output:
        figure("zero_filters", "Zero-filters", ".csv", "_by_net.csv"),
    log:
        f"{LOGS}/zero_filters.log",
    benchmark:
        f"{BENCHMARKS}/figures/zero_filters.tsv"
    conda:
        "../envs/relusym.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        models=SETTINGS.models,
        zero_filter=SETTINGS.config["filters"]["zero_filter"],
    script:
        "../workflow_scripts/zero_filters.py"
