# relu-symmetries: train seven kinds of VGG11, merge each with its flipped self and with others, tabulate.
#
#   images → data/<dataset> → train → flip_merge, pair_merge → tables and figures
#
# Targets: all (default), table1 to table5, figure4, costs, compare, provenance, bench. Settings: config.yaml.
from snakemake.utils import min_version

min_version("9.27")


configfile: "config.yaml"


report: "report/workflow.rst"


include: "rules/common.smk"
include: "rules/cluster.smk"
include: "rules/data.smk"
include: "rules/train.smk"
include: "rules/status.smk"
include: "rules/merge.smk"
include: "rules/tables.smk"
include: "rules/figures.smk"
include: "rules/resnet_rows.smk"
include: "rules/resnet.smk"
include: "rules/theory.smk"
include: "rules/compare.smk"
include: "rules/bench.smk"


rule all:
    default_target: True
    input:
        rules.table1.output,
        rules.table2.output,
        rules.table4.output,
        [getattr(rules, figure).output for figure in FILTER_PAIRS],
        rules.figure2.output,
        rules.figure3.output,
        rules.figure4.output,
        [rules.table3.output, rules.table5.output] if RESNETS.rows else [],
        rules.figure9.output if RESNETS.figure9 else [],
        rules.figure10.output,
        rules.zero_filters.output,
        rules.theory.output,
        rules.costs.output,
        rules.comparison.output,
        rules.claims.output,
        rules.provenance.output,
