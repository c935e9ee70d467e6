"""The datasets: annotations, names, files, pictures of samples. Nothing here knows Lightning."""
