"""The paper's Table 1 and Figs. 1 to 3, made anew (``[reproduce]`` extra).

Each has a module with a function of its name::

    from sb3_ppo_variants.reproduce.table1 import table1

    table = table1(tasks=["Hopper-v5"], seeds=[0, 1], timesteps=100_000, results="my_results")
    print(table.correlation, table.files)
"""
