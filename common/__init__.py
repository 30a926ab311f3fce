"""What every folder uses: files and errors, ranks, runs, intervals, videos, model folders."""
