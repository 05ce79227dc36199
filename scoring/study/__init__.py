"""A human study: what raters are asked, how their ballots are kept and counted, and the page they see."""
