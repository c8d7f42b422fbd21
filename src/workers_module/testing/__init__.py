"""How an application tests its jobs: no server, no port, no sleep."""
