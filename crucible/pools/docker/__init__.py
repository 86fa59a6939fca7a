"""The same image everywhere: building and pushing it, and the work pool `docker-gpu` on this machine's Docker engine.

engine.py         this machine's engine, and the client that can build with it
images.py         an image's content digest, its build
host_base.py      a base image from this machine's own files, where no registry answers
registry.py       pushing an image
configuration.py  the pool's variables
worker.py         prefect-docker's worker, set up for training
sharing.py        lets a container's user write to a folder of root's
pool.py           the pool and its deployment on a Prefect server
"""
