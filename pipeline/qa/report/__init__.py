"""The QA report: what a person looks at before believing a run.

    run         what is read of an OUTPUT: accounts in full, evidence of a bounded number of shards
    records     one shard's evidence
    throughput  the log of a run's counters
    estimate    means with confidence intervals, codebook statistics
    frechet     rFID
    figures     every number of the report
    pairs       two runs on the same images
    gallery     its pictures
    plots       its plots (axes: their frames)
    page        all of it as one HTML file
    report      from OUTPUT to the page and its numbers as JSON

Bounded whatever the size of the run: evidence of `run.MAX_SHARDS` shards at most, `gallery.MAX_BYTES` of pictures,
`figures.OUTLIERS_PER_COLUMN` shards for each column of the table; a page is below 8 MB.
"""

from pipeline.qa.report.report import Report, make_report, publish_report

__all__ = ["Report", "make_report", "publish_report"]
