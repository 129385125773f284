# The images of the scale, prepared once: one file of uint8 arrays.


localrules:
    prepare_data,


rule prepare_data:
    output:
        "data/{dataset}.safetensors",
    log:
        "data/{dataset}.log",
    benchmark:
        "data/{dataset}.tsv"
    wildcard_constraints:
        dataset=SETTINGS.dataset,
    conda:
        "../envs/relusym.yaml"
    threads: 2
    resources:
        mem_mb=4000,
        runtime=30,
    params:
        data=SETTINGS.config["scales"][SETTINGS.scale]["data"],
        cifar10=SETTINGS.config["cifar10"],
    script:
        "../workflow_scripts/prepare_data.py"
