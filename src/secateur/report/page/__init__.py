"""Parts of the HTML report: what is read, words, pictures, remarks; `report.html` puts them together."""
