"""Processes that work together, without torchrun and the seconds in which each loads torch."""

import multiprocessing
import os
import socket
import sys

import torch

import folio.options
import train
from folio import cli

PATIENCE = 120  # seconds; a machine with other work on it is slow
FORKS = multiprocessing.get_context('forkserver')  # whose processes have torch from their start
FORKS.set_forkserver_preload(['train', 'torch._dynamo', 'torch.distributed.fsdp',
                              'torch.distributed.checkpoint.state_dict'])


class Ranks:
    """main(argv) of a script in so many processes, as torchrun starts them; `folder` stands for the
    repository's."""

    def __init__(self, folder, processes, *argv, main=train.main):
        with socket.socket() as free:
            free.bind(('localhost', 0))
            port = free.getsockname()[1]
        self.outputs = [folder / f'{port}.{rank}.txt' for rank in range(processes)]
        self.processes = []
        for rank, path in enumerate(self.outputs):
            path.touch()
            arguments = main, argv, rank, port, self.outputs
            self.processes.append(FORKS.Process(target=run_rank, args=arguments))
            self.processes[-1].start()

    def wait(self):
        """The exit codes and what each process printed, two lists."""
        for process in self.processes:
            process.join(PATIENCE)
            process.kill()  # one that is too late
        return ([process.exitcode for process in self.processes],
                [path.read_text() for path in self.outputs])


def run_rank(main, argv, rank, port, outputs):
    """main(argv) as one process of as many as there are files for their outputs."""
    world = str(len(outputs))
    os.environ |= {'RANK': str(rank), 'LOCAL_RANK': str(rank), 'WORLD_SIZE': world,
                   'LOCAL_WORLD_SIZE': world, 'MASTER_ADDR': 'localhost', 'MASTER_PORT': str(port)}
    torch.set_num_threads(1)
    folio.options.ROOT = outputs[rank].parent
    os.chdir(folio.options.ROOT)
    file = os.open(outputs[rank], os.O_WRONLY)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv[1:] = map(str, argv)
    cli.run(main)


def run_together(folder, processes, *argv, main=train.main):
    """What such processes print, which have to end well."""
    codes, outputs = Ranks(folder, processes, *argv, main=main).wait()
    assert codes == [0] * processes, outputs
    return ''.join(outputs)
