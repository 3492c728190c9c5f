"""``python -m jobs``: the command line of every step."""

if __name__ == "__main__":
    from jobs.startup.fast_exit import FastExit

    fast_exit = FastExit()
    from jobs.cli import main

    fast_exit.run(main)
