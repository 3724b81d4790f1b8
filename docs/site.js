// What scrolls can be reached with the Tab key, and the search says what it is. The theme builds these parts when it starts.
window.addEventListener('load', () => setTimeout(() => {
  for (const part of document.querySelectorAll('.md-typeset__scrollwrap, .md-typeset pre > code')) part.tabIndex = 0;
  document.querySelectorAll('.md-code__nav').forEach((part, number) => { part.ariaLabel = `Code block ${number + 1}`; });
  for (const part of document.querySelectorAll('.md-code__button')) part.ariaLabel = part.title;
  document.querySelector('.md-search')?.setAttribute('aria-label', 'Search');
}));
