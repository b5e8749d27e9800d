"""How many processor cores this process may use, on any system and in a container."""


def available_cores() -> int:
    """Count the cores that this process may use: at least 1.

    The least of the machine's cores, the process's CPU affinity where the system has one (a Mac has
    none), and the CPU quota of the container (cgroup v1 and v2), rounded up.
    """
    from dask.system import cpu_count  # here, since a command's help needs no Dask

    return int(cpu_count())
