"""What every folder uses: files and errors, ranks, the resumable run, intervals, videos, pictures."""
