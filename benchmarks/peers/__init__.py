"""Our queue beside others, in one run on one machine: how many no-op items a second, and how soon one of them runs."""
